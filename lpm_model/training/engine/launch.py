"""One way to start a training: in this process, in several here, or as one of those that torchrun started."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lpm_model.training.config import Scale

T = TypeVar("T")
LOCAL = "127.0.0.1"
"""Processes of one machine meet here."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """Where this process stands: `rank` = data_rank * sequence_parallel + rank within the sequence group."""

    scale: Scale = Scale()
    rank: int = 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.scale.world > 1

    @property
    def first(self) -> bool:
        """Whether this process writes, logs and shows progress."""
        return self.rank == 0

    @property
    def data(self) -> int:
        """Batches that are computed at the same time."""
        return self.scale.data_parallel

    @property
    def data_rank(self) -> int:
        """Which of these is this process's."""
        return self.rank // self.scale.sequence_parallel

    @property
    def device(self) -> torch.device:
        """This process's own."""
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over all processes."""
        if not self.several:
            return value
        total = value.detach().float().clone()
        distributed.all_reduce(total)
        return total / self.scale.world

    def wait(self) -> None:
        """Until all are here."""
        if self.several:
            distributed.barrier()


ALONE = Mesh()


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first_process() -> bool:
    """Whether this process is the one that writes and logs."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(scale: Scale) -> Iterator[Mesh]:
    """The processes of a training, met and waiting for each other.

    Raises:
        ValueError: torchrun started another number of them.
    """
    world = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if world != scale.world:
        raise ValueError(
            f"{world} processes were started, train.scale wants {scale.nodes} x {scale.processes}: start as many, or "
            "change scale.nodes and scale.processes"
        )
    if world == 1:
        yield Mesh(scale)
        return
    mesh = Mesh(scale, int(os.environ["RANK"]))
    if mesh.device.type == "cuda":
        torch.cuda.set_device(mesh.device)
    distributed.init_process_group()
    mesh.wait()
    yield mesh
    # After an error the process just ends: closing would wait for others that are still in an exchange.
    mesh.wait()
    distributed.destroy_process_group()


def launch(work: Callable[..., T], scale: Scale, *arguments: Any) -> T:
    """Call a function in as many processes as `scale` says and return what the first one returned.

    Args:
        work: function of a module; what it gets and returns crosses process borders.
        scale: processes; several machines need torchrun on each.
        arguments: of the function.

    Raises:
        ValueError: several machines without torchrun, or what a process refused.
        RuntimeError: a process failed; the others have been ended.
    """
    if launched() or scale.world == 1:
        return work(*arguments)
    if scale.nodes > 1:
        raise ValueError(
            f"scale.nodes is {scale.nodes}: start every machine with `torchrun -m components.runtime.torchrun STEP` "
            "(train or distill), or write a TrainJob with `lpm trainjob`"
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=scale.processes, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint=f"{LOCAL}:0", local_addr=LOCAL,
    )  # fmt: skip
    try:
        results: dict[int, T] = elastic_launch(config, work)(*arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise _told(*error.get_first_failure()) from error
    return results[0]


def _told(rank: int, failure: Any) -> Exception:
    """The error of the process that failed first, as it was where it is the user's to mend."""
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    kind, _, text = message.partition(": ")
    return ValueError(text) if kind == ValueError.__name__ else RuntimeError(f"process {rank} failed: {message}")
