"""The lpm command: complete help, errors on one line."""

import socket
from pathlib import Path

import click
import pytest

from components.curate.config import Thresholds
from pipelines.cli import cli, main
from pipelines.data import _counted


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.fixture(autouse=True)
def temporary_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def all_commands(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        found.append((*prefix, name))
        if isinstance(command, click.Group):
            found += all_commands(command, (*prefix, name))
    return found


@pytest.mark.parametrize("command", all_commands(cli), ids=" ".join)
def test_every_command_and_option_has_a_help_text(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(capsys, *command, "--help")
    assert code == 0
    assert f"Usage: lpm {' '.join(command)}" in out
    options = [p for p in cli.commands[command[0]].params if isinstance(p, click.Option)]
    assert all(option.help for option in options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "curate.sise_px=64"), "did you mean curate.size_px?"),
        (("run", "thresholds.max_yaw_deg=30"), "did you mean curate.thresholds.max_yaw_deg?"),
        (("run", "curate.max_yaw_deg=30"), "did you mean curate.thresholds.max_yaw_deg?"),
        (("run", "max_clip_s=30"), "unknown config key max_clip_s: did you mean curate.max_clip_s?"),
        (("run", "workers=2"), "did you mean ingest.performer.workers or curate.workers"),
        (("run", "curate.workers=0"), "error: curate.workers is 0: give at least 1"),
        (("run", "curate.mesh_stride=7"), "error: curate.mesh_stride is 7: give at most 6"),
        (("run", "profile=huge"), "no profile 'huge'"),
        (("run", "data.source"), "has no '='"),
        (("curate",), "curate needs raw: workspace/raw does not exist"),
        (("serve",), "is not a model folder: run `lpm run` first"),
        (("lineage", "nothing"), "has no run.json"),
        (("autoencoder", "train", "nothing"), "nothing is not a folder"),
        (("data", "browse", "nothing"), "give the folder that `lpm curate` wrote"),
        (("data", "erase", "nothing"), "give either --identity or --source"),
        (("data", "erase", "nothing", "--identity", "Ada"), "run `lpm curate` first"),
        (("talk", "--speak", "a", "--listen", "b", "--image", "c", "--out", "x.txt"), "a name that ends in .mp4"),
        (("ingest", "--params", "none.yaml"), "none.yaml is missing"),
        (("distill", "distill.online.backbone_sigmas=[]"), "must fall from 1.0"),
    ],
)
def test_user_errors_are_one_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_taken_port_is_named_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "curation.html").write_text("a page")
    monkeypatch.setattr("components.dataset.browse.Clips", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = run_command(capsys, "data", "browse", str(tmp_path), "--serve", "--port", port)
    assert code == 2
    assert f"127.0.0.1:{port} is not available" in err
    assert "choose another port with --port" in err


def test_data_erase_help_and_item_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_command(capsys, "data", "erase", "--help")
    assert "person_hint" in out
    assert [_counted(1, "json"), _counted(3, "json")] == ["1 clip description", "3 clip descriptions"]
    assert [_counted(1, "recordings"), _counted(0, "recordings")] == ["1 recording", "0 recordings"]
    assert _counted(1, "cached analyses") == "1 cached analysis"


def test_debug_prints_the_traceback() -> None:
    with pytest.raises(ValueError, match="workspace/raw does not exist"):
        main(["--debug", "curate"])


def test_unknown_command_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_command(capsys, "curat")
    assert code == 2
    assert "curat" in err


def test_mapping_settings_accept_keys_of_any_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(
        capsys, "config", "deploy.promotion.tolerances.workers=0.5", "curate.thresholds.max_yaw_deg=30"
    )
    assert code == 0
    assert "workers: 0.5" in out


def test_config_prints_the_composed_values(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(capsys, "config", "data.source=here")
    assert code == 0
    assert "source: here" in out
    _, every, _ = run_command(capsys, "config", "--all", "data.source=here")
    assert "source: here" in every
    assert "    # Number of GPUs.\n    gpus: 0\n" in every
    assert "gpu_resource: nvidia.com/gpu" in every
    assert "gpu_resource" not in out


def test_curate_names_the_command_that_prints_every_profiles_thresholds(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_command(capsys, "curate", "--help")
    assert "lpm data thresholds" in out
    code, table, _ = run_command(capsys, "data", "thresholds")
    assert code == 0
    lines = [[cell.strip() for cell in line.split("│")] for line in table.splitlines()]
    rows = {cells[1]: cells[2:5] for cells in lines if len(cells) == 7 and cells[1]}
    assert set(rows) == set(Thresholds.__slots__)
    assert rows["min_face_px"] == ["40", "128", "256"]
    assert rows["min_bits_per_pixel"][0] == "-"


def test_compile_writes_the_pipeline(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, _ = run_command(capsys, "compile", "--out", "a/lpm.yaml")
    assert code == 0
    assert (tmp_path / "a" / "lpm.yaml").stat().st_size > 5000
