"""Entry point of a torchrun launch: `torchrun --nproc-per-node 8 -m components.runtime.torchrun train --help`."""

import argparse
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from components.runtime.runner import run_step
from components.runtime.steps import STEPS
from lpm_model.config import from_mapping
from lpm_model.files import working_folder
from lpm_model.progress import NoProgress

TRAININGS = ("train", "distill")
"""Steps that run in several processes; each process calls `fit` of the step's module."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train or distil; the main process runs the whole step, the others only `fit`."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from lpm_model.training.engine.launch import is_main_process

    parser = argparse.ArgumentParser(prog="python -m components.runtime.torchrun", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in TRAININGS:
        step = STEPS[verb]
        own = verbs.add_parser(verb, help=step.about, description=step.about)
        for name in step.inputs:
            own.add_argument(f"--{name}", type=Path, required=True, help="Folder to read.")
        own.add_argument(f"--{step.output}", type=Path, required=True, help="Folder to write, shared by all processes.")
        own.add_argument("--config", required=True, help="Settings of the step as JSON, as `lpm trainjob` writes them.")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    step = STEPS[given.verb]
    config = from_mapping(step.config_class(), json.loads(given.config), where=f"{step.verb}.")
    inputs, output = {name: getattr(given, name) for name in step.inputs}, getattr(given, step.output)
    if is_main_process():
        record(run_step)(step, inputs, output, config, NoProgress())
    else:
        fit = importlib.import_module(step.module).fit
        record(fit)(inputs, working_folder(output), config)


if __name__ == "__main__":
    main(sys.argv[1:])
