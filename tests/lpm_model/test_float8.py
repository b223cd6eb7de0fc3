"""FP8 matmuls: close to exact ones, scaled per token and per output, with shared weights still shared."""

import pytest
import torch

from lpm_model.config import Lora, ModelConfig
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.float8 import FLOAT8, Float8Linear, quantize, to_float8
from lpm_model.lora import adapted_layers, clone_with_adapter

LORA = Lora(rank=4, alpha=4.0)
ROUNDING = 2.0**-4
"""Largest relative rounding error with three mantissa bits."""


def random_tensor(*shape: int, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def backbone_and_refiner() -> tuple[DiffusionTransformer, DiffusionTransformer]:
    """Return a backbone, and a refiner that shares its weights."""
    torch.manual_seed(0)
    backbone = DiffusionTransformer(ModelConfig(width=64, heads=1, ffn_width=128, layers=2)).bfloat16()
    for weight in backbone.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.05)
    refiner = clone_with_adapter(backbone.requires_grad_(False), "refiner", LORA)
    for layer in adapted_layers(refiner):
        torch.nn.init.normal_(layer.adapters["refiner"].up, std=0.05)
    return backbone, refiner


@torch.no_grad()
def output_of(model: DiffusionTransformer) -> torch.Tensor:
    latents = random_tensor(1, 16, 2, 8, 8).bfloat16()
    return model(latents, torch.full((1, 2), 0.5), Conditions())


def test_quantize_error_is_within_rounding_for_any_row_scale() -> None:
    x = random_tensor(5, 32) * torch.tensor([1e-4, 0.1, 1.0, 30.0, 1e4])[:, None]
    values, scale = quantize(x)
    assert values.dtype == FLOAT8
    largest = x.abs().amax(dim=1, keepdim=True)
    assert ((values.float() * scale - x).abs() <= ROUNDING * x.abs() + 2e-3 * largest * ROUNDING).all()


def test_float8_linear_multiplies_the_quantized_values() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(32, 48).bfloat16()
    blocks = torch.nn.Module()
    blocks.blocks = torch.nn.ModuleList([layer])
    x = random_tensor(2, 3, 32).bfloat16()
    (weight, weight_scale), (values, scale) = quantize(layer.weight.detach()), quantize(x.flatten(0, 1))
    to_float8([blocks])
    small = blocks.blocks[0]
    assert isinstance(small, Float8Linear)
    wanted = (values.double() * scale) @ (weight.double() * weight_scale).T + layer.bias.double()
    assert torch.allclose(small(x).double().flatten(0, 1), wanted, rtol=2**-7, atol=1e-2)


def test_to_float8_stays_close_and_keeps_shared_weights() -> None:
    backbone, refiner = backbone_and_refiner()
    before = output_of(backbone), output_of(refiner)
    to_float8([backbone, refiner])
    for model, wanted in zip((backbone, refiner), before, strict=True):
        error = (output_of(model) - wanted).norm() / wanted.norm()
        assert 0 < error < 0.05
    own, shared = dict(refiner.named_parameters()), dict(backbone.named_parameters())
    assert all(own[name] is weight for name, weight in shared.items())
    assert shared["blocks.0.ffn.0.weight"].dtype == FLOAT8
    assert shared["patch.weight"].dtype == torch.bfloat16


def test_to_float8_rejects_other_types_and_sizes() -> None:
    backbone, _ = backbone_and_refiner()
    with pytest.raises(ValueError, match="run without float8"):
        to_float8([backbone.float()])
