"""Commands that a README or a page of docs/ tells a user to type exist."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from pipelines.cli import cli
from pipelines.config import load_config
from tests.contract.documents import documents, shell_lines
from tests.contract.project import PACKAGES, ROOT, VERBS
from tests.contract.tools import KNOWN, NotParsed, check_cobra, check_dvc, check_mlflow, check_table, program_path

ALL = [(path.relative_to(ROOT).as_posix(), words) for path in documents() for words in shell_lines(path.read_text())]
SHELL_WORDS = {"cd", "export", "source", "git", "pip", "pre-commit", "ruff", "mypy"}
"""Programs whose lines are not checked further; a new one has to be written here, or checked."""


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(words: list[str]) -> None:
    """Parse one command by its tool's parser.

    Raises:
        NotParsed: the tool would refuse it.
    """
    program = Path(words[0]).name
    if program in CHECKS:
        CHECKS[program](words[1:])
    elif program in KNOWN:
        check_cobra(program, words[1:])
    elif program not in SHELL_WORDS:
        raise NotParsed(f"{program} is no program that this test knows: write how it is checked")
    if "--" in words:
        inner = words[words.index("--") + 1 :]
        inner = inner[1:] if inner[:1] == ["env"] else inner
        check([word for word in inner if word != "..." and not re.fullmatch(r"[A-Z_]+=\S*", word)])


def check_make(words: list[str]) -> None:
    unknown = {word for word in words if "=" not in word} - make_targets()
    if unknown:
        raise NotParsed(f"make has no target {', '.join(sorted(unknown))}")


def check_python(words: list[str]) -> None:
    if words[:1] == ["-c"]:
        ast.parse(words[1])
    elif words[0].endswith(".py"):
        if not (ROOT / words[0]).exists():
            raise NotParsed(f"there is no {words[0]}")
    elif words[0] != "-m":
        raise NotParsed(f"python {' '.join(words)}: write how it is checked")
    elif words[1].split(".")[0] in {*PACKAGES, "tests", "docs"}:
        base = ROOT.joinpath(*words[1].split("."))
        if not (base.with_suffix(".py").exists() or (base / "__main__.py").exists()):
            raise NotParsed(f"there is no module {words[1]}")
    elif words[1] == "pytest":
        check_pytest(words[2:])


def check_pytest(words: list[str]) -> None:
    missing = [word for word in words if word.startswith("tests") and not (ROOT / word.split("::")[0]).exists()]
    if missing:
        raise NotParsed(f"pytest has nothing at {', '.join(missing)}")


def check_lpm(words: list[str]) -> None:
    """The command exists, its options too, and its overrides compose."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            raise NotParsed(f"lpm has no command {name}")
        command = command.commands[name]
    if "--help" in words or "-h" in words:
        return
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.partition("=")[0] for word in words if word.startswith("-")} - options
    if unknown:
        raise NotParsed(f"lpm {command.name} has no option {', '.join(sorted(unknown))}")
    overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)]
    if overrides and command.name in {*VERBS, "run", "compile", "config", "trainjob"}:
        try:
            load_config(overrides)
        except ValueError as error:
            raise NotParsed(str(error)) from error


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "lpm": check_lpm,
    "python": check_python,
    "pytest": check_pytest,
    "dvc": check_dvc,
    "mlflow": check_mlflow,
}


def test_the_quick_start_is_there() -> None:
    assert ("README.md", ["make", "demo"]) in ALL


@pytest.mark.parametrize(("file", "words"), ALL, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_commands_parse(file: str, words: list[str]) -> None:
    check(words)


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "lpm nothing",
        "lpm run --nothing",
        "lpm run curate.nothing=1",
        "python -m components.nothing",
        "python script.py",
        "pytest tests/nothing",
        "dvc reprod",
        "dvc repro --nothing",
        "mlflow uix",
        "mlflow ui --nothing 1",
        "mlflow ui --port word",
        "helm instal lpm helm/lpm",
        "helm install lpm helm/lpm --nothing",
        "kubectl aply -f x.yaml",
        "kubectl apply -f x.yaml --nothing",
        "kubectl create secrt generic name --from-env-file=x",
        "kubectl exec -it POD -- lpm nothing",
        "docker biuld .",
        "docker build --nothing .",
        "unheard-of program",
    ],
)
def test_commands_that_no_tool_accepts_are_found(line: str) -> None:
    with pytest.raises(NotParsed):
        check(line.split())


@pytest.mark.parametrize("line", ["kubectl aply -f x", "kubectl apply --nothing", "docker biuld .", "helm instal x y"])
def test_the_table_refuses_what_it_does_not_know(line: str) -> None:
    program, *words = line.split()
    with pytest.raises(NotParsed):
        check_table(program, words)


@pytest.mark.parametrize(
    "words", [["kubectl", "-n", "N", "create", "secret", "generic", "x"], ["docker", "build", "."]]
)
def test_the_table_finds_commands_after_flags(words: list[str]) -> None:
    check_table(words[0], words[1:])


@pytest.mark.parametrize(
    ("program", "command"), [(program, command) for program, commands in KNOWN.items() for command in commands]
)
def test_the_table_agrees_with_the_program(program: str, command: str) -> None:
    if program_path(program) is None:
        pytest.skip(f"{program} is not installed")
    switches = {"-it", "--rm", "--create-namespace", "--install", "--logs", "-w"}
    values = {"-t": "name:tag", "-p": "80:80"}
    flags = sorted(KNOWN[program][command])
    words = [word for flag in flags for word in ([flag] if flag in switches else [flag, values.get(flag, "x=y")])]
    check_cobra(program, [*command.split(), *words])
