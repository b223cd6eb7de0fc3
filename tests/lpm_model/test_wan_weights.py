"""Our transformer with imported weights against diffusers' WanTransformer3DModel, and the round trip."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from lpm_model.config import ModelConfig, from_mapping
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.wan_weights import export_wan, import_wan
from lpm_model.weight_shards import STEM, Shards, init_weights_from
from pipelines.cli import cli
from tests.lpm_model.tiny import normal, randomised

SHAPES = [
    # heads, head width, layers, ffn, text width, latent frames, rows, columns, text tokens
    (2, 12, 1, 48, 16, 1, 4, 4, 7),
    (1, 24, 2, 32, 8, 3, 6, 4, 5),
    (3, 16, 2, 80, 24, 5, 2, 10, 12),
    (2, 32, 1, 64, 16, 2, 16, 16, 4),
    (4, 24, 3, 96, 32, 7, 6, 14, 20),
    (2, 128, 1, 128, 16, 1, 2, 2, 1),
]


def wan(shape: tuple[int, ...], **changes: Any) -> Any:
    heads, width, layers, ffn, text, *_ = shape
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        **{"num_attention_heads": heads, "attention_head_dim": width, "num_layers": layers, "ffn_dim": ffn,
           "text_dim": text, "freq_dim": 32, **changes},
    )  # fmt: skip
    return randomised(model, 1, 0.1)


def ours(folder: Path) -> DiffusionTransformer:
    config = from_mapping(ModelConfig, json.loads((folder / "config.json").read_text())["model"])
    dit = DiffusionTransformer(config)
    with Shards(folder, STEM) as shards:
        dit.load_state_dict({name: shards.read(name) for name in shards.files})
    return dit.eval().requires_grad_(False)


def outputs_of_both(model: Any, dit: DiffusionTransformer, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the outputs of both models for the same noisy latents, level and text."""
    *_, text_width, frames, rows, columns, tokens = shape
    latents, text = normal(2, 16, frames, rows, columns, seed=3), normal(2, tokens, text_width, seed=4)
    with torch.no_grad():
        expected = model(
            hidden_states=latents, timestep=torch.tensor([300.0, 900.0]), encoder_hidden_states=text, return_dict=False
        )[0]
        got = dit(latents, torch.tensor([0.3, 0.9])[:, None].expand(-1, frames), Conditions(text=text))
    return got, expected


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def reloaded(folder: Path) -> Any:
    model = diffusers.WanTransformer3DModel.from_config(diffusers.WanTransformer3DModel.load_config(folder))
    model.load_state_dict(weights(folder))
    return model


@pytest.mark.parametrize("shape", SHAPES)
def test_imported_weights_compute_like_diffusers(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = wan(shape)
    model.save_pretrained(tmp_path / "wan")
    assert import_wan(tmp_path / "wan", tmp_path / "ours") == []
    got, expected = outputs_of_both(model, ours(tmp_path / "ours"), shape)
    assert float((got - expected).norm() / expected.norm()) < 1e-5
    assert float(expected.std()) > 0.1, "a constant output would agree with anything"


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_export_after_import_gives_the_same_bits(kind: torch.dtype, tmp_path: Path) -> None:
    model = wan(SHAPES[4]).to(kind)
    model.save_pretrained(tmp_path / "wan", max_shard_size="100KB")
    import_wan(tmp_path / "wan", tmp_path / "ours", shard_bytes=150_000)
    export_wan(tmp_path / "ours", tmp_path / "back", shard_bytes=120_000)
    for folder, limit in (("ours", 150_000), ("back", 120_000)):
        files = list((tmp_path / folder).glob("*.safetensors"))
        assert len(files) > 3
        biggest = max(sum(t.nbytes for t in load_file(path).values()) for path in files)
        assert biggest <= max(limit, 6 * 96 * 96 * 4), "the largest tensor alone may exceed the limit"
    before, after = weights(tmp_path / "wan"), weights(tmp_path / "back")
    assert before.keys() == after.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {kind}
    reloaded(tmp_path / "back")


def test_import_drops_clip_branch_and_mask_channels(tmp_path: Path) -> None:
    shape = SHAPES[1]
    model = wan(shape, in_channels=36, image_dim=10, added_kv_proj_dim=24)
    model.save_pretrained(tmp_path / "wan")
    dropped = import_wan(tmp_path / "wan", tmp_path / "ours")
    assert dropped[0] == "patch_embedding.weight: the last 20 of 36 input channels"
    assert any("image_embedder" in name for name in dropped)
    assert any("add_k_proj" in name for name in dropped)
    bare = wan(shape)
    kept = {n: t for n, t in model.state_dict().items() if n in bare.state_dict()}
    kept["patch_embedding.weight"] = kept["patch_embedding.weight"][:, :16]
    bare.load_state_dict(kept)
    got, expected = outputs_of_both(bare, ours(tmp_path / "ours"), shape)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_import_command_prints_dropped_weights(tmp_path: Path) -> None:
    wan(SHAPES[0], in_channels=36).save_pretrained(tmp_path / "wan")
    result = CliRunner().invoke(cli, ["import-wan", str(tmp_path / "wan"), "--out", str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    assert "the last 20 of 36 input channels" in result.output
    back = ["import-wan", str(tmp_path / "ours"), "--out", str(tmp_path / "back"), "--back"]
    assert CliRunner().invoke(cli, back).exit_code == 0
    assert reloaded(tmp_path / "back").config.in_channels == 16


def test_import_rejects_other_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="config.json is missing"):
        import_wan(tmp_path, tmp_path / "ours")
    model = wan(SHAPES[0], cross_attn_norm=False)
    model.save_pretrained(tmp_path / "wan")
    with pytest.raises(ValueError, match="cross_attn_norm"):
        import_wan(tmp_path / "wan", tmp_path / "ours")
    wan(SHAPES[0]).save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.safetensors cannot be read"):
        import_wan(tmp_path / "cut", tmp_path / "ours")
    file.unlink()
    with pytest.raises(ValueError, match="holds neither"):
        import_wan(tmp_path / "cut", tmp_path / "ours")


def test_init_weights_from_imported_folder(tmp_path: Path) -> None:
    """With audio branches added, the output is Wan's: audio values start at zero."""
    shape = SHAPES[1]
    model = wan(shape)
    model.save_pretrained(tmp_path / "wan")
    import_wan(tmp_path / "wan", tmp_path / "ours")
    plain = ours(tmp_path / "ours")
    voiced = DiffusionTransformer(replace(plain.config, audio_width=12, text_tokens=shape[-1]))
    fresh = init_weights_from(voiced, tmp_path / "ours")
    assert fresh
    assert all("audio" in name or name.split(".")[0].removeprefix("null_") in ("speak", "listen") for name in fresh)
    got, expected = outputs_of_both(model, voiced.eval(), shape)
    assert torch.allclose(got, expected, atol=1e-4)


def test_init_weights_from_names_mismatches(tmp_path: Path) -> None:
    model = wan(SHAPES[0])
    model.save_pretrained(tmp_path / "wan")
    import_wan(tmp_path / "wan", tmp_path / "ours")
    config = ours(tmp_path / "ours").config
    with pytest.raises(ValueError, match=r"'blocks\.0\..* more weights that this model does not have"):
        init_weights_from(DiffusionTransformer(replace(config, layers=0)), tmp_path / "ours")
    with pytest.raises(ValueError, match=r"ffn\.0\.bias has shape \(48,\), train\.model needs \(64,\)"):
        init_weights_from(DiffusionTransformer(replace(config, ffn_width=64)), tmp_path / "ours")
    with pytest.raises(ValueError, match="holds neither"):
        init_weights_from(DiffusionTransformer(config), tmp_path)
