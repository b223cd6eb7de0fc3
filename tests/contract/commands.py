"""Commands, parsed by the parsers of their tools: ours, Python's, and those of tests/contract/tools.py."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import click

from pipelines.cli import cli
from pipelines.config import load_config
from tests.contract.project import PACKAGES, ROOT, VERBS
from tests.contract.tools import KNOWN, NotParsed, check_cobra, check_dvc, check_mlflow

SHELL_WORDS = {"cd", "export", "source", "git", "pip", "pre-commit", "ruff", "mypy", "kind"}
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
