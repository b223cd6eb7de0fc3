"""Adapters: nothing at the start, named, switched, and merged into a plain model that computes the same."""

from pathlib import Path

import pytest
import torch

from lpm_model.config import Lora
from lpm_model.dit import DiffusionTransformer
from lpm_model.lora import (
    activate_adapter,
    adapted_layers,
    adapter_active,
    adapter_difference,
    add_adapter,
    clone_with_adapter,
    difference_lora,
    load_adapter,
    merge_adapter,
)
from tests.lpm_model import tiny

LORA = Lora(rank=3, alpha=6.0)
LATENTS, SIGMA, GIVEN = tiny.normal(1, 16, 3, 4, 4), torch.tensor([[0.0, 0.5, 0.7]]), tiny.conditions(3)


def adapted(*names: str) -> DiffusionTransformer:
    model = tiny.transformer()
    for number, name in enumerate(names):
        for weight in add_adapter(model, name, LORA):
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(number))
    return model


@torch.no_grad()
def velocity(model: DiffusionTransformer) -> torch.Tensor:
    return model(LATENTS, SIGMA, GIVEN)


def test_new_adapter_changes_nothing_and_is_the_only_trainable_part() -> None:
    model, plain = tiny.transformer(), velocity(tiny.transformer())
    learning = add_adapter(model, "one", LORA)
    assert torch.equal(velocity(model), plain)
    assert {id(w) for w in model.parameters() if w.requires_grad} == {id(w) for w in learning}
    matrices = sum(".adapters.one.up" in name for name in model.state_dict())
    audio = 2 * 3  # keys, values, output of the voice in both blocks
    assert matrices == 2 * (2 + 4 + 2) + audio  # self-attention, text, feed-forward


def test_merged_weights_equal_the_adapted_model() -> None:
    model = adapted("one", "two")
    for name in ("one", "two"):
        with adapter_active(model, name):
            wanted = velocity(model)
            assert not torch.allclose(wanted, velocity(tiny.transformer()), atol=1e-3)
        plain = tiny.transformer()
        plain.load_state_dict(merge_adapter(model.state_dict(), name, LORA))
        assert torch.allclose(velocity(plain), wanted, atol=1e-5)


def test_adapter_active_restores_previous_adapter() -> None:
    model = adapted("one", "two")
    second = velocity(model)
    with adapter_active(model, None):
        assert torch.equal(velocity(model), velocity(tiny.transformer()))
    assert torch.equal(velocity(model), second)
    activate_adapter(model, "one")
    assert not torch.equal(velocity(model), second)


def test_targets_select_linear_layers() -> None:
    model = tiny.transformer()
    add_adapter(model, "one", Lora(rank=2, targets=("ffn",)))
    assert len(adapted_layers(model)) == 4
    with pytest.raises(ValueError, match="'fnn' matches no linear layer"):
        add_adapter(model, "two", Lora(rank=2, targets=("fnn",)))
    with pytest.raises(ValueError, match="use 0, or a rank and targets"):
        Lora(rank=-1)


def test_adapter_difference_over_merged_adapter() -> None:
    model = adapted("student", "refiner")
    weights = model.state_dict()
    backbone = tiny.transformer()
    backbone.load_state_dict(merge_adapter(weights, "student", LORA))
    refiner = clone_with_adapter(backbone, "refiner", difference_lora(LORA))
    update = adapter_difference(weights, "refiner", "student", LORA)
    load_adapter(refiner, update, Path("refiner.safetensors"))
    assert torch.allclose(velocity(refiner), velocity(model), atol=1e-5)
    with adapter_active(model, "student"):
        assert torch.allclose(velocity(backbone), velocity(model), atol=1e-5)
    shared = {id(weight) for weight in backbone.parameters()}
    assert {id(w) for name, w in refiner.named_parameters() if ".adapters." not in name} == shared
    with pytest.raises(ValueError, match=r"refiner\.safetensors does not fit"):
        load_adapter(refiner, dict(list(update.items())[1:]), Path("refiner.safetensors"))
