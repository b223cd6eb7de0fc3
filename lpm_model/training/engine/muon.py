"""Muon (https://kellerjordan.github.io/posts/muon/) for many small matrices, for kernels, and for sharded matrices.

W processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.optim import _muon

from lpm_model.precision import native_dtype


def orthogonalise(stack: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Orthogonalise matrices of one shape by the Newton-Schulz iteration of torch.optim.Muon.

    Args:
        stack: momenta [matrices, rows, columns].
        group: of the optimizer: `ns_coefficients`, `ns_steps`, `eps`.

    Returns:
        [matrices, rows, columns] in the native type of the device.
    """
    first, second, third = group["ns_coefficients"]
    x = stack.to(native_dtype(stack.device))
    upright = x.shape[1] > x.shape[2]
    x = x.mT if upright else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return x.mT if upright else x


class StackedMuon(torch.optim.Muon):
    """Muon that batches matrices of one shape; one at a time, small ones would take a fifth of a training step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step, equal to that of torch.optim.Muon if the native type of the device is bfloat16."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for shape in dict.fromkeys(weight.shape for weight in weights):
                self._update([weight for weight in weights if weight.shape == shape], group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        """Update some matrices of one shape."""
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if group["nesterov"]:
            momenta = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        rate = _muon._adjust_lr(float(group["lr"]), group["adjust_lr_fn"], weights[0].shape)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - float(group["lr"]) * group["weight_decay"])
        directions = orthogonalise(torch.stack(momenta), group).to(weights[0].dtype)
        torch._foreach_add_(weights, list(directions.unbind()), alpha=-rate)


class KernelMuon(StackedMuon):
    """Muon for convolution kernels [out, in, h, w], each viewed as the matrix [out, h*w*in] that multiplies patches.

    The kernels are in channels-last memory format, so that the matrices are views of them.
    """

    def __init__(self, kernels: Sequence[Tensor], rate: float, weight_decay: float) -> None:
        self.kernels = kernels
        matrices = [nn.Parameter(k.detach().permute(0, 2, 3, 1).view(len(k), -1)) for k in kernels]
        super().__init__(matrices, rate, weight_decay=weight_decay)

    def step(self, closure: Any = None) -> Any:
        """Take one step with the gradients of the kernels."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for kernel, matrix in zip(self.kernels, self.param_groups[0]["params"], strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.permute(0, 2, 3, 1).reshape(matrix.shape)
        super().step()
        return loss


class ShardedMuon(StackedMuon):
    """Muon for matrices sharded by rows: full matrices are exchanged, W of a shape at a time, one for each process.

    Each process orthogonalises its own and returns the rows, so that every matrix is computed once.
    """

    def _update(self, weights: list[Any], group: dict[str, Any]) -> None:
        """Update this process's rows of some matrices of one shape."""
        rate = _muon._adjust_lr(float(group["lr"]), group["adjust_lr_fn"], weights[0].shape)
        for weight, direction in zip(weights, self._directions(weights, group), strict=True):
            rows = weight.to_local()
            rows.mul_(1 - float(group["lr"]) * group["weight_decay"]).add_(direction, alpha=-rate)

    def _directions(self, weights: Sequence[DTensor], group: dict[str, Any]) -> Tensor:
        """Return this process's rows of each orthogonalised momentum, [matrices, own rows, columns]."""
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
        sharded = DTensor.from_local(torch.stack(updates), over, [Shard(1)], shape=torch.Size(shape), stride=stride)
        full = sharded.redistribute(placements=[Shard(0)]).to_local()
        if len(full):
            full.copy_(orthogonalise(full, group))
        back = DTensor.from_local(full, over, [Shard(0)], shape=torch.Size(shape), stride=stride)
        return back.redistribute(placements=[Shard(1)]).to_local()
