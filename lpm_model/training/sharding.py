"""FSDP2: weights, gradients, averages and moments of a training cut by rows over all processes.

W processes. A weight is held as a DTensor, rows of it on each; a block's are gathered when it runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.optim import _muon

from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.parallel import SequenceGroup
from lpm_model.training.launch import Mesh


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


class ShardedMuon(torch.optim.Muon):
    """Muon for matrices cut by rows: it wants whole ones, so W of a shape at a time are exchanged, one a process.

    Each process orthogonalises its own and sends the rows back: every matrix is computed once.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step, equal to that of torch.optim.Muon on whole matrices."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for shape in dict.fromkeys(weight.shape for weight in weights):
                alike = [weight for weight in weights if weight.shape == shape]
                for weight, direction in zip(alike, self._directions(alike, group), strict=True):
                    rate = _muon._adjust_lr(float(group["lr"]), group["adjust_lr_fn"], shape)
                    rows = weight.to_local()
                    rows.mul_(1 - float(group["lr"]) * group["weight_decay"]).add_(direction, alpha=-rate)
        return loss

    def _directions(self, weights: Sequence[DTensor], group: dict[str, Any]) -> Tensor:
        """This process's rows of each orthogonalised momentum, [matrices, own rows, columns]."""
        updates = []
        for weight in weights:
            gradient = weight.grad.to_local()  # type: ignore[union-attr]
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            momentum = state["momentum_buffer"].to_local().lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum)
        shape, over = (len(weights), *weights[0].shape), weights[0].device_mesh
        stride = (shape[1] * shape[2], shape[2], 1)
        cut = DTensor.from_local(torch.stack(updates), over, [Shard(1)], shape=torch.Size(shape), stride=stride)
        whole = cut.redistribute(placements=[Shard(0)]).to_local()
        for matrix in whole:
            matrix.copy_(
                _muon._zeropower_via_newtonschulz(matrix, group["ns_coefficients"], group["ns_steps"], group["eps"])
            )
        back = DTensor.from_local(whole, over, [Shard(0)], shape=torch.Size(shape), stride=stride)
        return back.redistribute(placements=[Shard(1)]).to_local()
