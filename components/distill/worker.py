"""One of the processes that torchrun starts: `torchrun --nproc-per-node 8 -m components.distill.worker --help`."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from components.common import NoProgress, working_folder
from components.distill.config import DistillConfig
from components.distill.step import fit
from components.runner import run_step
from components.steps import STEPS
from lpm_model.config import from_mapping


def main(arguments: Sequence[str] | None = None) -> None:
    """Distil; the first process runs the whole step, the others only its computation."""
    from torch.distributed.elastic.multiprocessing.errors import record

    from lpm_model.training.launch import first_process

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="Folder of the Base LPM.")
    parser.add_argument("--dataset", type=Path, required=True, help="Folder that curate wrote.")
    parser.add_argument("--model", type=Path, required=True, help="Model folder to write, on a disk that all reach.")
    parser.add_argument("--config", required=True, help="The step's settings as JSON.")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    config = from_mapping(DistillConfig, json.loads(given.config))
    if first_process():
        inputs = {"base": given.base, "dataset": given.dataset}
        record(run_step)(STEPS["distill"], inputs, given.model, config, NoProgress())
    else:
        record(fit)(given.base, given.dataset, working_folder(given.model), config)


if __name__ == "__main__":
    main(sys.argv[1:])
