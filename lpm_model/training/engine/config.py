"""Settings that every training shares."""

from dataclasses import dataclass

from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Processes of a training. Weights, gradients and moments are sharded over all of them (FSDP2).

    They only change the speed: the batches of an optimizer step (`accumulate`) are divided among them.
    """

    nodes: int = setting(1, help="Machines.")
    processes: int = setting(1, help="Processes on each machine, one per GPU.")
    sequence_parallel: int = setting(
        1, help="Processes that share the tokens of one batch (Ulysses); each such group computes batches of its own."
    )

    def __post_init__(self) -> None:
        for name in ("nodes", "processes", "sequence_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.world % self.sequence_parallel:
            raise ValueError(
                f"scale: {self.world} processes do not divide into groups of "
                f"sequence_parallel={self.sequence_parallel}: choose a divisor"
            )

    @property
    def world(self) -> int:
        """Number of all processes."""
        return self.nodes * self.processes

    @property
    def data_parallel(self) -> int:
        """Number of batches that are computed at the same time."""
        return self.world // self.sequence_parallel
