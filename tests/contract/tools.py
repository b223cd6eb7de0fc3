"""Check that shell commands parse: dvc and mlflow with their own parsers, cobra programs with `--help`.

Programs built on cobra (helm, kubectl, docker) parse flags before they answer `--help`: an unknown flag is an error,
and the printed usage names the recognised command.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click

from tests.helm import binary

KNOWN_COMMANDS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "kubectl": {
        "apply": frozenset({"-f", "-n", "--dry-run"}),
        "create namespace": frozenset(),
        "create secret generic": frozenset({"-n", "--from-env-file", "--from-literal"}),
        "describe": frozenset({"-n"}),
        "exec": frozenset({"-it", "-n"}),
        "get": frozenset({"-A", "-n", "-o", "-w"}),
        "logs": frozenset({"-f", "-n", "--tail"}),
        "port-forward": frozenset({"-n"}),
        "run": frozenset({"-n", "--command", "--env", "--image", "--port"}),
        "wait": frozenset({"-n", "--for", "--timeout"}),
    },
    "docker": {
        "build": frozenset({"-f", "-t", "--build-arg"}),
        "push": frozenset(),
        "run": frozenset({"--rm", "-it", "-p", "-v", "-e"}),
    },
    "helm": {
        "install": frozenset({"-n", "-f", "--create-namespace", "--set"}),
        "upgrade": frozenset({"-n", "-f", "--install", "--set"}),
        "test": frozenset({"-n", "--logs"}),
        "template": frozenset({"-n", "-f"}),
        "uninstall": frozenset({"-n"}),
    },
}
"""Commands and flags, used where a program is not installed; a test compares them with the program where it is."""


class CommandParseError(Exception):
    """The tool would reject the command; the message is the tool's."""


def program_path(name: str) -> Path | None:
    """Return the path of an installed program (helm may come from its package), or None."""
    if name == "helm":
        try:
            return binary.helm_path()
        except binary.Unavailable:
            return None
    found = shutil.which(name)
    return Path(found) if found else None


def check_cobra(name: str, words: list[str]) -> None:
    """Parse the words after helm, kubectl or docker.

    Raises:
        CommandParseError: an unknown command or flag.
    """
    own = words[: words.index("--")] if "--" in words else words
    path = program_path(name)
    if path is None:
        check_table(name, own)
        return
    result = subprocess.run([str(path), *own, "--help"], capture_output=True, text=True, timeout=60, check=False)
    output = result.stdout + result.stderr
    if result.returncode:
        raise CommandParseError(output.strip().splitlines()[0])
    usage = re.search(rf"^Usage:\s+{name} (.*)$", output, re.MULTILINE)
    command = re.match(r"(?:[a-z][a-z-]*(?: |$))*", usage[1]) if usage else None
    understood = command[0].split() if command else []
    if not understood or not _is_subsequence(understood, own):
        raise CommandParseError(f"{name} understands {' '.join(understood) or 'no command'} of: {' '.join(own)}")
    after = own[own.index(understood[-1]) + 1 :]
    group = "Available Commands:" in output or (usage and usage[1].endswith(" COMMAND"))
    if group and after and not after[0].startswith("-"):
        raise CommandParseError(f"{name} {' '.join(understood)} has no command {after[0]}")


def check_table(name: str, words: list[str]) -> None:
    """Look the command and its flags up in the table.

    Raises:
        CommandParseError: the table has no such command or flag.
    """
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    command = next((c for c in KNOWN_COMMANDS[name] if _is_subsequence(c.split(), words)), None)
    if command is None or not flags <= KNOWN_COMMANDS[name][command]:
        raise CommandParseError(f"{name} {' '.join(words)} is not in the table of known commands")


def check_dvc(words: list[str]) -> None:
    """Parse the words after `dvc`.

    Raises:
        CommandParseError: an unknown command or flag.
    """
    from dvc.cli import parse_args
    from dvc.cli.parser import DvcParserError

    try:
        parse_args(words)
    except DvcParserError as error:
        raise CommandParseError(f"dvc {' '.join(words)}: {error}") from error


def check_mlflow(words: list[str]) -> None:
    """Parse the words after `mlflow`.

    Raises:
        CommandParseError: an unknown command, option or value.
    """
    from mlflow.cli import cli

    check_click(cli, "mlflow", words)


def check_click(command: click.Command, name: str, words: list[str]) -> None:
    """Parse words with a click command and its subcommands, without running any.

    Raises:
        CommandParseError: an unknown command, option or value.
    """
    parent: click.Context | None = None
    try:
        while isinstance(command, click.Group):
            with command.make_context(name, list(words), parent=parent) as context:
                rest = [*context._protected_args, *context.args]
                found, target, words = command.resolve_command(context, rest)
            assert target is not None
            name, command, parent = found or name, target, context
        command.make_context(name, list(words), parent=parent)
    except click.exceptions.Exit:
        return
    except click.ClickException as error:
        raise CommandParseError(f"{name} {' '.join(words)}: {error.format_message()}") from error


def _is_subsequence(part: list[str], whole: list[str]) -> bool:
    """Return whether `part` is a subsequence of `whole`: flags and values may be in between."""
    rest = iter(whole)
    return all(word in rest for word in part)
