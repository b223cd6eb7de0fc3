"""umT5 and wav2vec2 from folders as their authors write them, with small random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly
from transformers import UMT5EncoderModel, Wav2Vec2Model

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_LATENT, AudioConfig
from lpm_model.encoders.pretrained import UmT5TextEncoder, Wav2Vec2AudioEncoder, to_16k
from tests.lpm_model.encoders.encoder_folders import write_umt5, write_wav2vec2
from tests.lpm_model.tiny import normal, voice

AUDIO = AudioConfig(encoder="wav2vec2", past_ms=400, lookahead_ms=100)


@pytest.fixture(scope="module")
def umt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_umt5(tmp_path_factory.mktemp("umt5"))


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wav2vec2(tmp_path_factory.mktemp("wav2vec2"))


def test_umt5_equals_transformers_and_is_zero_after_the_text(umt5: Path) -> None:
    encoder = UmT5TextEncoder(umt5, tokens=6)
    out = encoder.encode(["a  person\nnods", "smiles"])
    assert out.shape == (2, 6, encoder.width) == (2, 6, 16)
    peer = UMT5EncoderModel.from_pretrained(umt5).eval()
    with torch.no_grad():
        alone = peer(torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    assert torch.allclose(out[:1, :4], alone, atol=1e-5)
    assert float(out[0, 4:].abs().max()) == float(out[1, 2:].abs().max()) == 0
    assert encoder.encode(["a person nods speaks smiles a person"]).shape == (1, 6, 16)


@pytest.mark.parametrize("plan", [[1, 1, 1, 1], [3, 1], [4]])
def test_wav2vec2_streamed_features_equal_whole_file(wav2vec2: Path, plan: list[int]) -> None:
    encoder = Wav2Vec2AudioEncoder(AUDIO, wav2vec2)
    past, ahead = encoder.past_samples, encoder.lookahead_samples
    audio = voice(past + 4 * SAMPLES_PER_LATENT + ahead, batch=2)
    whole = encoder.encode(audio)
    assert whole.shape == (2, 4, 4, encoder.width)
    parts, start = [], 0
    for count in plan:
        parts.append(encoder.encode(audio[:, start : start + past + count * SAMPLES_PER_LATENT + ahead]))
        start += count * SAMPLES_PER_LATENT
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)


def test_wav2vec2_features_follow_their_frame(wav2vec2: Path) -> None:
    """The token of a video frame is the feature that wav2vec2 puts at its first sample, and the one at its middle."""
    encoder = Wav2Vec2AudioEncoder(AUDIO, wav2vec2)
    audio = voice(encoder.window_samples)
    peer = Wav2Vec2Model.from_pretrained(wav2vec2).eval()
    wave = to_16k(audio)
    with torch.no_grad():
        features = peer((wave - wave.mean()) / wave.std(unbiased=False)).last_hidden_state[0]
    tokens = encoder.encode(audio)[0, 0]
    for frame in range(4):
        at = [(encoder.past_samples + 1000 * frame + half) * 50 // AUDIO_RATE for half in (0, 500)]
        assert torch.allclose(tokens[frame], torch.cat([features[i] for i in at]), atol=1e-4)


def test_wav2vec2_features_depend_on_their_window_only(wav2vec2: Path) -> None:
    encoder = Wav2Vec2AudioEncoder(AUDIO, wav2vec2)
    audio = voice(encoder.past_samples + 3 * SAMPLES_PER_LATENT + encoder.lookahead_samples)
    later = audio.clone()
    later[:, encoder.window_samples :] = 0.3
    assert torch.allclose(encoder.encode(audio)[:, 0], encoder.encode(later)[:, 0], atol=1e-5)
    assert not torch.allclose(encoder.encode(audio)[:, 1], encoder.encode(later)[:, 1], atol=1e-3)


def test_to_16k_equals_scipy_and_keeps_a_tone() -> None:
    for samples in (2399, 2401):
        assert to_16k(normal(1, samples))[0].shape == resample_poly(np.zeros(samples), 2, 3).shape
    noise = normal(1, 2400, seed=1)
    ours, theirs = to_16k(noise)[0].numpy(), resample_poly(noise[0].numpy(), 2, 3)
    assert np.corrcoef(ours[100:-100], theirs[100:-100])[0, 1] > 0.99
    time = torch.arange(2400) / AUDIO_RATE
    tone = torch.sin(2 * torch.pi * 440 * time)[None]
    want = torch.sin(2 * torch.pi * 440 * torch.arange(1600) / 16_000)
    assert torch.allclose(to_16k(tone)[0, 50:-50], want[50:-50], atol=1e-3)
    high = torch.sin(2 * torch.pi * 10_000 * time)[None]
    assert float(to_16k(high)[0, 50:-50].abs().max()) < 1e-2  # above what 16 kHz can carry


def test_load_errors_name_the_cause(wav2vec2: Path, umt5: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        Wav2Vec2AudioEncoder(AUDIO, tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((wav2vec2 / name).read_bytes()[: 10_000 if name[0] == "m" else None])
    with pytest.raises(ValueError, match="does not load"):
        Wav2Vec2AudioEncoder(AUDIO, tmp_path)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((umt5 / "config.json").read_bytes())
    torch.save(UMT5EncoderModel.from_pretrained(umt5).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        UmT5TextEncoder(pickled, 4)
