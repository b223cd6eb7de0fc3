"""Commands in READMEs and docs/ exist and parse."""

from typing import Any

import pytest

from tests.contract.commands import check
from tests.contract.documents import documents, shell_lines
from tests.contract.project import ROOT
from tests.contract.tools import KNOWN_COMMANDS, CommandParseError, check_cobra, check_table, program_path

ALL = [(path.relative_to(ROOT).as_posix(), words) for path in documents() for words in shell_lines(path.read_text())]


def test_readme_contains_the_quick_start() -> None:
    assert ("README.md", ["make", "demo"]) in ALL


def heavy_where_slow(file: str, words: list[str]) -> Any:
    """Return the test case of a command; mlflow's parser takes seconds to import."""
    marks = [pytest.mark.heavy] if words[0] == "mlflow" else []
    return pytest.param(file, words, id=f"{file}: {' '.join(words)}", marks=marks)


@pytest.mark.parametrize(("file", "words"), [heavy_where_slow(*command) for command in ALL])
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
        *(
            pytest.param(line, marks=pytest.mark.heavy)
            for line in ("mlflow uix", "mlflow ui --nothing 1", "mlflow ui --port x")
        ),
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
def test_invalid_commands_are_rejected(line: str) -> None:
    with pytest.raises(CommandParseError):
        check(line.split())


@pytest.mark.parametrize("line", ["kubectl aply -f x", "kubectl apply --nothing", "docker biuld .", "helm instal x y"])
def test_command_table_rejects_unknown_commands_and_flags(line: str) -> None:
    program, *words = line.split()
    with pytest.raises(CommandParseError):
        check_table(program, words)


@pytest.mark.parametrize(
    "words", [["kubectl", "-n", "N", "create", "secret", "generic", "x"], ["docker", "build", "."]]
)
def test_command_table_finds_commands_after_flags(words: list[str]) -> None:
    check_table(words[0], words[1:])


SWITCHES = {"-A", "-it", "-w", "--command", "--create-namespace", "--install", "--logs", "--rm"}
VALUES = {
    "-p": "80:80",
    "-t": "name:tag",
    "--dry-run": "client",
    "--port": "80",
    "--tail": "1",
    "--timeout": "1m",
}
"""Values that flags accept; any other flag takes `x=y`."""


@pytest.mark.parametrize(
    ("program", "command"), [(program, command) for program, commands in KNOWN_COMMANDS.items() for command in commands]
)
def test_command_table_matches_the_installed_program(program: str, command: str) -> None:
    if program_path(program) is None:
        pytest.skip(f"{program} is not installed")
    words = command.split()
    for flag in sorted(KNOWN_COMMANDS[program][command]):
        value = VALUES.get(flag, "x=y")
        words += [flag] if flag in SWITCHES else [f"{flag}={value}"] if flag.startswith("--") else [flag, value]
    check_cobra(program, words)
