"""Cost of a model: the FLOP formula against torch's counter, sizes against published ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from lpm_model.config import ModelConfig, OnlineConfig
from lpm_model.describe import Workload, chunk_duration_s, chunk_workload, describe, read_model_shape, tokens_per_latent
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.online import OnlineModel
from pipelines.cli import cli
from pipelines.config import load_config
from tests.lpm_model import tiny

CONFIGS = [
    ModelConfig(),
    ModelConfig(layers=3, width=96, heads=4, ffn_width=200, residual_gain=0.0),
    ModelConfig(layers=2, width=64, heads=2, audio_width=0, text_tokens=9),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_forward_flops_equal_torch_flop_counter(config: ModelConfig) -> None:
    batch, frames, side = 2, 3, 8
    dit = DiffusionTransformer(config)
    context = frames + config.context_latents
    voice = torch.randn(batch, context, config.audio_tokens, config.audio_width) if config.audio_width else None
    given = Conditions(text=torch.randn(batch, config.text_tokens, config.text_width), speak=voice, listen=voice)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        dit(torch.randn(batch, 16, frames, side, side), torch.rand(batch, frames), given)
    cost = describe(config, Workload(frames=frames, tokens=side * side // 4, batch=batch))
    assert cost.total_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert cost.total_parameters == sum(p.numel() for p in dit.parameters())


def test_chunk_workload_flops_with_full_cache() -> None:
    online: OnlineModel = tiny.online_model()
    chunk = online.chunk_latents
    cache = online.prefill(tiny.person())
    clean = torch.randn(1, 16, chunk, 4, 4)
    given = tiny.conditions(chunk).without("references")
    sigma = torch.full((1, chunk), 0.5)
    for _ in range(2 * online.online.cache_latents):
        online.backbone(clean, sigma, given, cache, record=cache.write)
        cache.advance(chunk)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        online.backbone(clean, sigma, given, cache)
    references = cache.reference_positions.numel()
    setting = replace(chunk_workload(online.online, tiny.SIZE_PX, references), tokens=4)
    cost = describe(online.config, setting)
    assert cost.total_flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    held = cache.keys.nbytes + cache.values.nbytes + cache.reference_keys.nbytes + cache.reference_values.nbytes
    assert cost.kv_bytes == held // 2, "the test's cache is float32"


def test_17b_profile_has_the_papers_parameter_count() -> None:
    config = load_config(["profile=17b"])
    cost = describe(config.train.model, chunk_workload(config.distill.online, config.curate.size_px))
    assert cost.total_parameters == pytest.approx(17.43e9, rel=0.005)


def test_min_time_is_the_longer_of_compute_and_memory_time() -> None:
    cost = describe(ModelConfig(), chunk_workload(OnlineConfig(), 128))
    assert tokens_per_latent(128) == 64
    assert cost.min_time_s(1e-6, 1e9) == pytest.approx(cost.total_flops / 1e6)
    assert cost.min_time_s(1e9, 1e-6) == pytest.approx((cost.weight_bytes + cost.kv_bytes) / 1e6)
    assert chunk_duration_s(OnlineConfig(chunk_latents=3)) == 0.5
    with pytest.raises(ValueError, match="positive"):
        cost.min_time_s(0, 1)


def test_describe_command_prints_every_part() -> None:
    result = CliRunner().invoke(cli, ["model", "describe", "profile=17b"])
    assert result.exit_code == 0, result.output
    for part in (
        "self-attention",
        "audio cross-attention",
        "audio projectors",
        "feed-forward",
        "weights",
        "for a chunk of 500 ms",
    ):
        assert part in result.output


def test_describe_command_reads_a_model_folder(tmp_path: Path) -> None:
    config = {"model": {"width": 64, "layers": 3, "heads": 2}, "online": {"chunk_latents": 6}, "size_px": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape, online, size_px = read_model_shape(tmp_path, OnlineConfig())
    assert (shape.width, shape.layers, online.chunk_latents, size_px) == (64, 3, 6, 64)
    result = CliRunner().invoke(cli, ["model", "describe", "--model", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "for a chunk of 1,000 ms" in result.output
    with pytest.raises(ValueError, match="is not a model folder"):
        read_model_shape(tmp_path / "none", OnlineConfig())
