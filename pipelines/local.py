"""Runs the KFP pipeline on this machine, in a subprocess with kfp's local runner, and follows its progress.

kfp keeps its local runner's settings in a process-wide object and deletes the workspace after a run, so every run
gets its own process. The output of the tasks goes to `run.log`, their progress to `progress.jsonl`.
"""

import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from components.runtime.progress import Event
from components.runtime.steps import STEPS
from lpm_model.config import from_mapping
from lpm_model.files import read_json
from pipelines.config import RootConfig, to_plain
from pipelines.summary import write_summary

log = logging.getLogger(__name__)


class RunFailedError(ValueError):
    """A step of a run failed; the message names the step, the reason, and the log."""


def new_run_id() -> str:
    """Return a run id that sorts by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def run_pipeline(
    config: RootConfig,
    runs: Path,
    *,
    run_id: str = "",
    cache: Path | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> tuple[Path, dict[str, Any]]:
    """Run the six steps and write summary.json.

    Args:
        config: settings of the run.
        runs: folder that receives the run's folder and the link `latest`.
        run_id: name of the run; empty = the time.
        cache: folder of cached results; None runs every step.
        watch: receives progress events.

    Returns:
        The run's folder and its summary.

    Raises:
        RunFailedError: a step failed.
        ValueError: a run with this id exists.
    """
    run_dir = (runs / (run_id or new_run_id())).resolve()
    if run_dir.exists():
        raise ValueError(f"{run_dir} exists already: choose another --id")
    (run_dir / "steps").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(to_plain(config), sort_keys=False))
    environment = {
        **os.environ,
        "LPM_RUN_DIR": str(run_dir),
        "LPM_PROGRESS": str(run_dir / "progress.jsonl"),
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("LPM_CACHE", None)
    if cache is not None:
        environment["LPM_CACHE"] = str(cache.resolve())
    code = _run_and_watch(run_dir, environment, watch)
    if code != 0:
        raise RunFailedError(_failure(run_dir, code))
    return run_dir, write_summary(run_dir)


def _run_and_watch(run_dir: Path, environment: dict[str, str], watch: Callable[[Event], None]) -> int:
    command = [sys.executable, "-m", "pipelines.local", str(run_dir)]
    with (run_dir / "run.log").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        events = _events(run_dir)
        try:
            while process.poll() is None:
                for event in next(events):
                    watch(event)
                time.sleep(0.2)
        except BaseException:
            _stop(process)
            raise
        for event in next(events):
            watch(event)
    return process.returncode


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the runner and the task that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            log.warning("the run did not stop on %s", number.name)


def _events(run_dir: Path) -> Iterator[list[Event]]:
    """Yield the events since the previous call, without end."""
    position, finished = 0, set()
    path = run_dir / "progress.jsonl"
    while True:
        batch: list[Event] = []
        if path.exists():
            with path.open() as handle:
                handle.seek(position)
                for line in iter(handle.readline, ""):
                    if not line.endswith("\n"):
                        break
                    batch.append(json.loads(line))
                    position += len(line.encode())
        for verb in STEPS:
            record = run_dir / "steps" / f"{verb}.json"
            if verb not in finished and record.exists():
                finished.add(verb)
                batch.append({"step": verb, "finished": True, "record": read_json(record)})
        yield batch


def _failure(run_dir: Path, code: int) -> str:
    for verb in STEPS:
        path = run_dir / "steps" / f"{verb}.error.json"
        if path.exists():
            error = read_json(path)
            kind = "" if error["kind"] == "ValueError" else f"{error['kind']}: "
            return f"{verb} failed: {kind}{error['message']} (log: {run_dir / 'run.log'})"
    done = [verb for verb in STEPS if (run_dir / "steps" / f"{verb}.json").exists()]
    where = next((verb for verb in STEPS if verb not in done), "the runner")
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code} and no message"
    return f"{where} {how}; run the same command again to resume (log: {run_dir / 'run.log'}; out of memory?)"


def main(run_dir: Path) -> None:
    """Run the pipeline of a prepared run folder under kfp's local runner; the entry point of the subprocess."""
    warnings.filterwarnings("ignore", message=".*(no effect|base image).*", category=Warning)
    from kfp import local

    from pipelines.lpm import build_pipeline, pipeline_arguments

    config = from_mapping(RootConfig, yaml.safe_load((run_dir / "config.yaml").read_text()))
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(run_dir / "kfp"),
        workspace_root=str(run_dir / "kfp" / "workspace"),
        raise_on_error=True,
    )
    build_pipeline(config)(**pipeline_arguments(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
