"""Audio noise augmentation: bounded, within its levels, deterministic, with the requested probability."""

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model.config import AUDIO_RATE
from lpm_model.sampler import BaseModel
from lpm_model.training.engine.data import ClipBatches, WindowSampling
from lpm_model.training.engine.noise_augmentation import MAX_LEVEL_DB, MIN_LEVEL_DB, add_noise
from lpm_model.training.engine.shard_reader import read_clips
from tests.lpm_model import tiny

SILENCE = torch.zeros(2 * AUDIO_RATE)


def level_db(audio: torch.Tensor) -> float:
    return float(10 * audio[audio != 0].square().mean().log10())


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_noise_level_is_within_bounds(seed: int) -> None:
    audio = add_noise(SILENCE, torch.Generator().manual_seed(seed))
    assert audio.shape == SILENCE.shape
    assert float(audio.abs().max()) <= 1
    assert MIN_LEVEL_DB - 6 < level_db(audio) < MAX_LEVEL_DB + 6  # a span of brown noise varies in level
    assert torch.equal(audio, add_noise(SILENCE, torch.Generator().manual_seed(seed)))


def test_chord_is_tonal_and_noise_is_broadband() -> None:
    shares = []
    for seed in range(40):
        spectrum = torch.fft.rfft(add_noise(SILENCE, torch.Generator().manual_seed(seed))).abs().square()
        shares.append(float(spectrum.topk(60).values.sum() / spectrum.sum()))
    assert min(shares) < 0.2 < 0.9 < max(shares)


def test_noise_augmentation_frequency_matches_probability(tmp_path: Path) -> None:
    encoder = tiny.write_autoencoder(tmp_path / "autoencoder")
    clips = read_clips(tiny.write_dataset(tmp_path / "dataset", encoder))
    model = BaseModel(tiny.MODEL, tiny.autoencoder(), tiny.SIZE_PX)

    def speak(chance: float) -> torch.Tensor:
        source = ClipBatches(
            clips, model, latents=4, batch=200, steps=range(1), seed=0, sampling=WindowSampling(noise_aug_prob=chance)
        )
        conditions = source.make(0).conditions
        assert conditions.speak is not None
        return conditions.speak

    plain = speak(0.0)
    for chance in (0.3, 1.0):
        changed = float((speak(chance) != plain).flatten(1).any(1).float().mean())
        assert 0.6 * chance < changed < chance + 0.1  # noise covers only part of the clip
