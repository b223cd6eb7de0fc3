"""FSDP2: weights, gradients, averages and moments of a training cut by rows over all processes.

W processes. A weight is held as a DTensor, rows of it on each; a block's are gathered when it runs.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.sequence_parallel import SequenceGroup
from lpm_model.training.engine.launch import Mesh


def shard(transformer: DiffusionTransformer, mesh: Mesh, *, bf16: bool) -> None:
    """Cut a transformer over all processes, block by block, in place; the first process's weights are the ones kept.

    Args:
        transformer: on the first process with weights, on the others as an empty shape (device meta).
        mesh: processes.
        bf16: gather the blocks' weights as bfloat16; gradients are reduced in float32 either way.
    """
    weights: dict[str, Any] = dict(transformer.state_dict()) if mesh.first else {}
    transformer.to("meta")  # what is sharded next takes no memory until its rows are known
    over = init_device_mesh(mesh.device.type, (mesh.scale.world,))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in transformer.blocks:
        fully_shard(block, mesh=over, mp_policy=policy)
    fully_shard(transformer, mesh=over)
    transformer.to_empty(device=mesh.device)
    set_model_state_dict(
        transformer, weights, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    )


def sequence_group(mesh: Mesh) -> SequenceGroup | None:
    """The processes that share this one's tokens; None where it has them to itself."""
    if mesh.scale.sequence_parallel == 1:
        return None
    axes = init_device_mesh(
        mesh.device.type, (mesh.data, mesh.scale.sequence_parallel), mesh_dim_names=("data", "sequence")
    )
    return SequenceGroup(axes["sequence"].get_group())


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights on the first process's CPU, of a sharded or a plain model; empty on the others."""
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return dict(model.state_dict())
    whole: dict[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return whole


class Branches:
    """Remembers which optional branches any process went through since the last step.

    Sharded gradients are reduced by all processes together, so absent branches get zeros; before a step those that
    nobody used go back to None, which optimizers skip, as in one process.
    """

    def __init__(self, transformer: DiffusionTransformer, device: torch.device) -> None:
        transformer.reach_all = True
        self.sides = transformer.branches()
        self.used = torch.zeros(len(self.sides), 2, device=device)

    def note(self, conditions: Conditions) -> None:
        """A forward pass under these conditions."""
        for row, name in enumerate(self.sides):
            self.used[row, int(getattr(conditions, name) is None)] = 1
        if conditions.text is not None:
            self.used[list(self.sides).index("text")] = 1  # rows without a text are given the null among the others

    def settle(self) -> None:
        """Before the step."""
        distributed.all_reduce(self.used, distributed.ReduceOp.MAX)
        for sides, used in zip(self.sides.values(), self.used.tolist(), strict=True):
            for weights, reached in zip(sides, used, strict=True):
                for weight in weights if not reached else ():
                    weight.grad = None
        self.used.zero_()
