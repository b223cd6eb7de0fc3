"""Check shell commands with the parsers of their tools, without running them; see also tests/contract/tools.py."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import click

from pipelines.cli import cli
from pipelines.config import load_config
from tests.contract.project import PACKAGES, ROOT, VERBS
from tests.contract.tools import KNOWN_COMMANDS, CommandParseError, check_cobra, check_dvc, check_mlflow

SHELL_WORDS = {"cd", "export", "source", "git", "pip", "pre-commit", "ruff", "mypy", "kind"}
"""Programs whose arguments are not checked. Add a new program here, or write a check for it."""


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(words: list[str]) -> None:
    """Parse one command with its tool's parser.

    Raises:
        CommandParseError: the tool would reject it.
    """
    program = Path(words[0]).name
    if program in CHECKS:
        CHECKS[program](words[1:])
    elif program in KNOWN_COMMANDS:
        check_cobra(program, words[1:])
    elif program not in SHELL_WORDS:
        raise CommandParseError(f"unknown program {program}: add a check for it")
    if "--" in words:
        inner = words[words.index("--") + 1 :]
        inner = inner[1:] if inner[:1] == ["env"] else inner
        check([word for word in inner if word != "..." and not re.fullmatch(r"[A-Z_]+=\S*", word)])


def check_make(words: list[str]) -> None:
    unknown = {word for word in words if "=" not in word} - make_targets()
    if unknown:
        raise CommandParseError(f"make has no target {', '.join(sorted(unknown))}")


def check_python(words: list[str]) -> None:
    if words[:1] == ["-c"]:
        ast.parse(words[1])
    elif words[0].endswith(".py"):
        if not (ROOT / words[0]).exists():
            raise CommandParseError(f"there is no {words[0]}")
    elif words[0] != "-m":
        raise CommandParseError(f"python {' '.join(words)}: add a check for this form")
    elif words[1].split(".")[0] in {*PACKAGES, "tests", "docs"}:
        base = ROOT.joinpath(*words[1].split("."))
        if not (base.with_suffix(".py").exists() or (base / "__main__.py").exists()):
            raise CommandParseError(f"there is no module {words[1]}")
    elif words[1] == "pytest":
        check_pytest(words[2:])


def check_pytest(words: list[str]) -> None:
    missing = [word for word in words if word.startswith("tests") and not (ROOT / word.split("::")[0]).exists()]
    if missing:
        raise CommandParseError(f"pytest has nothing at {', '.join(missing)}")


def check_lpm(words: list[str]) -> None:
    """Check that the command and its options exist and that its overrides compose."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in command.commands:
            raise CommandParseError(f"lpm has no command {name}")
        command = command.commands[name]
    if "--help" in words or "-h" in words:
        return
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.partition("=")[0] for word in words if word.startswith("-")} - options
    if unknown:
        raise CommandParseError(f"lpm {command.name} has no option {', '.join(sorted(unknown))}")
    overrides = [word for word in words if re.fullmatch(r"[a-z_.]+=.*", word)]
    if overrides and command.name in {*VERBS, "run", "compile", "config", "trainjob"}:
        try:
            load_config(overrides)
        except ValueError as error:
            raise CommandParseError(str(error)) from error


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "make": check_make,
    "lpm": check_lpm,
    "python": check_python,
    "pytest": check_pytest,
    "dvc": check_dvc,
    "mlflow": check_mlflow,
}
