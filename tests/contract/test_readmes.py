"""Commands that a README tells a user to type exist."""

import re
import shlex
from pathlib import Path

import click
import pytest

from pipelines.cli import cli
from pipelines.config import load_config
from tests.contract.project import ROOT, VERBS, project_files

READMES = [path for path in project_files() if path.name == "README.md"]
FENCE = re.compile(r"```(?:bash|sh|console|shell)\n(.*?)```", re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Every line of the shell blocks, split into words, without comments."""
    lines = [
        line.removeprefix("$ ").strip()
        for block in FENCE.findall(path.read_text())
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [words for line in lines if line and (words := shlex.split(line, comments=True))]


ALL = [(path.relative_to(ROOT).as_posix(), words) for path in READMES for words in commands(path)]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_quick_start_is_there() -> None:
    assert ("README.md", ["make", "demo"]) in ALL


@pytest.mark.parametrize(("file", "words"), ALL, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_commands_exist(file: str, words: list[str]) -> None:
    program = Path(words[0]).name
    if program == "make":
        assert {word for word in words[1:] if "=" not in word} <= make_targets(), file
    elif program == "lpm":
        check_lpm(words[1:])
    elif program == "python" and words[1:2] == ["-m"] and words[2].split(".")[0] in {"serving", "tests", "pipelines"}:
        base = ROOT.joinpath(*words[2].split("."))
        assert base.with_suffix(".py").exists() or (base / "__main__.py").exists(), file
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests")), file
    else:
        assert program.isascii()


def check_lpm(words: list[str]) -> None:
    """The command exists, its options too, and its overrides compose."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
    if "--help" in words or "-h" in words:
        return
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options
    overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)]
    if overrides and command.name in {*VERBS, "run", "compile", "config"}:
        assert load_config(overrides)
