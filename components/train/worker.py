"""One of the processes that torchrun starts: `torchrun --nproc-per-node 8 -m components.train.worker --help`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from components.common import NoProgress, working_folder
from components.runner import run_step
from components.steps import STEPS
from components.train.config import TrainConfig
from components.train.step import fit
from lpm_model.config import from_mapping


def main(arguments: Sequence[str] | None = None) -> None:
    """Train; the first process runs the whole step, the others only its computation."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from lpm_model.training.launch import first_process

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="Folder that curate wrote.")
    parser.add_argument("--model", type=Path, required=True, help="Model folder to write, on a disk that all reach.")
    parser.add_argument("--config", required=True, help="The step's settings as JSON: `lpm trainjob` writes them.")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config = from_mapping(TrainConfig, json.loads(given.config))
    if first_process():
        record(run_step)(STEPS["train"], {"dataset": given.dataset}, given.model, config, NoProgress())
    else:
        record(fit)(given.dataset, working_folder(given.model), config)


if __name__ == "__main__":
    main(sys.argv[1:])
