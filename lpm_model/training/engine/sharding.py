"""FSDP2: weights, gradients, averages and moments of a training, sharded by rows over all processes.

W processes. A weight is a DTensor with some of its rows on each process; those of a block are gathered when it runs.
"""

from dataclasses import replace
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
    """Shard a transformer over all processes, block by block, in place, with the weights of the main process.

    Args:
        transformer: with weights on the main process, without storage (device meta) on the others.
        mesh: processes.
        bf16: gather the blocks' weights as bfloat16; gradients are reduced in float32 either way.
    """
    weights: dict[str, Any] = dict(transformer.state_dict()) if mesh.is_main else {}
    transformer.to("meta")  # so that sharding allocates this process's rows only
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
    """Return the processes that share the tokens of a batch with this one; None without sequence parallelism."""
    if mesh.scale.sequence_parallel == 1:
        return None
    axes = init_device_mesh(
        mesh.device.type, (mesh.data_parallel, mesh.scale.sequence_parallel), mesh_dim_names=("data", "sequence")
    )
    return SequenceGroup(axes["sequence"].get_group())


def full_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the full weights of a sharded or plain model on the CPU of the main process; empty on the others."""
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return dict(model.state_dict())
    full: dict[str, Any] = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return full


class Branches:
    """Records which optional branches any process has used since the last step.

    Sharded gradients are reduced by all processes together, so unused branches get zeros; before a step the gradients
    of branches that no process used are reset to None, which optimizers skip, as in a single process.
    """

    def __init__(self, transformer: DiffusionTransformer, device: torch.device) -> None:
        transformer.set_execution(replace(transformer.execution, touch_all_parameters=True))
        self.sides = transformer.branch_parameters()
        self.used = torch.zeros(len(self.sides), 2, device=device)

    def record(self, conditions: Conditions) -> None:
        """Record a forward pass under these conditions."""
        for row, name in enumerate(self.sides):
            self.used[row, int(getattr(conditions, name) is None)] = 1
        if conditions.text is not None:
            self.used[list(self.sides).index("text")] = 1  # rows without a text get the null embedding

    def drop_unused_gradients(self) -> None:
        """Reset the gradients of branches that no process used; call it before the optimizer step."""
        distributed.all_reduce(self.used, distributed.ReduceOp.MAX)
        for sides, used in zip(self.sides.values(), self.used.tolist(), strict=True):
            for weights, was_used in zip(sides, used, strict=True):
                for weight in weights if not was_used else ():
                    weight.grad = None
        self.used.zero_()
