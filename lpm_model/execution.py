"""How forward passes of the transformer are executed. None of it changes the result beyond the order of sums."""

from dataclasses import dataclass

from lpm_model.sequence_parallel import SequenceGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Switches of one transformer, given to its constructor or to `DiffusionTransformer.set_execution`."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of storing its activations; passes over a cache store them."""
    compiled: bool = False
    """Compile everything between the attentions, for inference: norms, gates and rotations join the matmuls."""
    sequence_group: SequenceGroup | None = None
    """Processes that share the tokens of one batch."""
    touch_all_parameters: bool = False
    """Give parameters of absent branches zeros as gradients instead of None, as sharded gradients need it."""


EAGER = Execution()
"""Everything off."""
