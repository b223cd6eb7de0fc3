"""Starts a training in this process, in several on this machine, or as one of the processes of a torchrun launch."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

import torch
from torch import Tensor, distributed

from lpm_model.training.engine.config import Scale

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
LOOPBACK = "127.0.0.1"
"""Rendezvous address of the processes of one machine."""


@dataclass(frozen=True, slots=True)
class Mesh:
    """The position of this process: `rank` = data_rank * sequence_parallel + rank within the sequence group."""

    scale: Scale = Scale()
    rank: int = 0

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.scale.world > 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes, logs and shows progress."""
        return self.rank == 0

    @property
    def data_parallel(self) -> int:
        """Number of batches that are computed at the same time."""
        return self.scale.data_parallel

    @property
    def data_rank(self) -> int:
        """Index of this process's batch among them."""
        return self.rank // self.scale.sequence_parallel

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if not self.is_distributed:
            return value
        total = value.detach().float().clone()
        distributed.all_reduce(total)
        return total / self.scale.world

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.is_distributed:
            distributed.barrier()


SINGLE_PROCESS = Mesh()


def under_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_main_process() -> bool:
    """Return whether this process writes and logs."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def join_processes(scale: Scale) -> Iterator[Mesh]:
    """Join the process group of a training, and leave it together at the end.

    Raises:
        ValueError: torchrun started another number of processes.
    """
    world = int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1
    if world != scale.world:
        raise ValueError(
            f"{world} processes were started, train.scale asks for {scale.nodes} x {scale.processes}: start that many, "
            "or change scale.nodes and scale.processes"
        )
    if world == 1:
        yield Mesh(scale)
        return
    mesh = Mesh(scale, int(os.environ["RANK"]))
    if mesh.device.type == "cuda":
        torch.cuda.set_device(mesh.device)
    distributed.init_process_group()
    mesh.barrier()
    yield mesh
    # After an error, exit without leaving the group, which would wait for processes inside a collective.
    mesh.barrier()
    distributed.destroy_process_group()


def launch(function: Callable[[*Arguments], T], scale: Scale, *arguments: *Arguments) -> T:
    """Call a function in as many processes as `scale` asks for and return the result of the first.

    Args:
        function: defined in a module; its arguments and its result are pickled.
        scale: processes; several machines need torchrun on each.
        arguments: of the function.

    Raises:
        ValueError: several machines without torchrun, or a ValueError of a process.
        RuntimeError: a process failed; the others were stopped.
    """
    if under_torchrun() or scale.world == 1:
        return function(*arguments)
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
        rdzv_backend="c10d", rdzv_endpoint=f"{LOOPBACK}:0", local_addr=LOOPBACK,
    )  # fmt: skip
    try:
        results: dict[int, T] = elastic_launch(config, function)(*arguments)
    except SignalException as error:
        raise KeyboardInterrupt from error
    except ChildFailedError as error:
        raise _to_exception(*error.get_first_failure()) from error
    return results[0]


def _to_exception(rank: int, failure: Any) -> Exception:
    """Convert the first failure to an exception: a ValueError, which the user can fix, stays one."""
    message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    kind, _, text = message.partition(": ")
    return ValueError(text) if kind == ValueError.__name__ else RuntimeError(f"process {rank} failed: {message}")
