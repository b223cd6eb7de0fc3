"""How forward passes of the transformer are executed. None of it changes the result, apart from rounding."""

from dataclasses import dataclass

from lpm_model.sequence_parallel import SequenceGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """Switches of one transformer, given to its constructor or to `DiffusionTransformer.set_execution`."""

    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of storing its activations; passes over a cache store them."""
    compiled: bool = False
    """Compile everything between the attentions, for inference: fuses norms, gates and rotations."""
    sequence_group: SequenceGroup | None = None
    """Processes that share the tokens of one batch."""
    touch_all_parameters: bool = False
    """Give parameters of absent branches zero gradients instead of None, which sharded gradients require."""


EAGER = Execution()
"""Everything off."""
