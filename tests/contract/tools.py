"""Whether a shell command parses, by the tool's own parser: dvc and mlflow in Python, the others by their `--help`.

Programs built on cobra (helm, kubectl, docker) parse flags before they answer `--help`: an unknown flag is an error,
and the usage they print names the command that they understood.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import click

from tests.helm import binary

KNOWN: Mapping[str, Mapping[str, frozenset[str]]] = {
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
"""Commands and their flags where a program is not installed; a test holds them against the program where it is."""


class NotParsed(Exception):
    """A command that its tool would refuse; the message is the tool's."""


def program_path(name: str) -> Path | None:
    """Return the installed program, or helm from its package, or None."""
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
        NotParsed: an unknown command or flag.
    """
    own = words[: words.index("--")] if "--" in words else words
    path = program_path(name)
    if path is None:
        check_table(name, own)
        return
    result = subprocess.run([str(path), *own, "--help"], capture_output=True, text=True, timeout=60, check=False)
    output = result.stdout + result.stderr
    if result.returncode:
        raise NotParsed(output.strip().splitlines()[0])
    usage = re.search(rf"^Usage:\s+{name} (.*)$", output, re.MULTILINE)
    command = re.match(r"(?:[a-z][a-z-]*(?: |$))*", usage[1]) if usage else None
    understood = command[0].split() if command else []
    if not understood or not _is_subsequence(understood, own):
        raise NotParsed(f"{name} understands {' '.join(understood) or 'no command'} of: {' '.join(own)}")
    after = own[own.index(understood[-1]) + 1 :]
    group = "Available Commands:" in output or (usage and usage[1].endswith(" COMMAND"))
    if group and after and not after[0].startswith("-"):
        raise NotParsed(f"{name} {' '.join(understood)} has no command {after[0]}")


def check_table(name: str, words: list[str]) -> None:
    """Look the command and its flags up in the table.

    Raises:
        NotParsed: the table has no such command or flag.
    """
    flags = {word.partition("=")[0] for word in words if word.startswith("-")}
    command = next((c for c in KNOWN[name] if _is_subsequence(c.split(), words)), None)
    if command is None or not flags <= KNOWN[name][command]:
        raise NotParsed(f"{name} {' '.join(words)} is not in the table of known commands")


def check_dvc(words: list[str]) -> None:
    """Parse the words after `dvc`.

    Raises:
        NotParsed: an unknown command or flag.
    """
    from dvc.cli import parse_args
    from dvc.cli.parser import DvcParserError

    try:
        parse_args(words)
    except DvcParserError as error:
        raise NotParsed(f"dvc {' '.join(words)}: {error}") from error


def check_mlflow(words: list[str]) -> None:
    """Parse the words after `mlflow`.

    Raises:
        NotParsed: an unknown command, option or value.
    """
    from mlflow.cli import cli

    check_click(cli, "mlflow", words)


def check_click(command: click.Command, name: str, words: list[str]) -> None:
    """Parse words by a click command and those below it, without running one.

    Raises:
        NotParsed: an unknown command, option or value.
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
        raise NotParsed(f"{name} {' '.join(words)}: {error.format_message()}") from error


def _is_subsequence(part: list[str], whole: list[str]) -> bool:
    """Whether the words of part follow each other in whole, with flags and their values between them."""
    rest = iter(whole)
    return all(word in rest for word in part)
