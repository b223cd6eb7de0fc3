"""Audio and text encoders: closed form, locality, streaming."""

import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpm_model.config import AudioConfig
from lpm_model.encoders.load import build_audio_encoder
from lpm_model.encoders.mel import mel_filters
from lpm_model.encoders.tiny import HashTextEncoder, MelAudioEncoder
from lpm_model.online import OnlineModel
from tests.lpm_model.tiny import MODEL, voice

AUDIO = AudioConfig()
MEL = MelAudioEncoder(AUDIO)
AROUND = AUDIO.past_samples + AUDIO.lookahead_samples


def mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def test_mel_filters_are_triangles_on_the_mel_scale() -> None:
    filters = mel_filters(8, 24_000, 1024)
    assert filters.shape == (513, 8)
    edges = [700 * (10 ** (mel(12_000) * i / 9 / 2595) - 1) for i in range(10)]
    for band in range(8):
        low, peak, high = edges[band : band + 3]
        for index in (40, 100, 200, 400):
            hertz = index * 24_000 / 1024
            expected = max(0.0, min((hertz - low) / (peak - low), (high - hertz) / (high - peak)))
            assert math.isclose(float(filters[index, band]), expected, abs_tol=1e-5)


def test_mel_filters_sum_to_one_between_outer_peaks() -> None:
    filters = mel_filters(48, 24_000, 1024)
    first, last = int(filters[:, 0].argmax()) + 1, int(filters[:, -1].argmax()) - 1
    np.testing.assert_allclose(filters[first:last].sum(1), 1, atol=1e-12)


@pytest.mark.parametrize("hertz", [300, 1000, 4000])
def test_tone_is_loudest_in_its_mel_band(hertz: int) -> None:
    time = torch.arange(AROUND + 4000) / 24_000
    features = MEL.encode(0.5 * torch.sin(2 * torch.pi * hertz * time)[None])
    profile = features.unflatten(-1, (AUDIO.mels, -1)).mean(dim=(0, 1, 2, 4))
    centre = mel(hertz) / mel(12_000) * (AUDIO.mels + 1) - 1
    assert abs(int(profile.argmax()) - centre) <= 1


def test_silence_gives_constant_features() -> None:
    assert torch.allclose(MEL.encode(torch.zeros(1, AROUND + 8000)), torch.full((1, 2, 4, MEL.width), -1.0))


def test_encoder_widths() -> None:
    features = MEL.encode(voice(AROUND + 3 * 4000, batch=2))
    assert features.shape == (2, 3, 4, MEL.width)
    assert MEL.width == 960


@given(st.integers(0, 11), st.integers(0, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_feature_depends_on_its_window_only(frame: int, beyond: int, after: bool) -> None:
    """Frame f may see past_samples before it, its own 1000 samples and lookahead_samples after it."""
    audio = voice(AROUND + 3 * 4000, 3)
    start, end = frame * 1000, frame * 1000 + AROUND + 1000
    changed = audio.clone()
    if after:
        changed[:, end + beyond :] = 1
    else:
        changed[:, : max(0, start - beyond)] = 1
    before = MEL.encode(audio).flatten(1, 2)
    assert torch.equal(before[:, frame], MEL.encode(changed).flatten(1, 2)[:, frame])
    inside = audio.clone()
    inside[:, start + 600 : end - 600] *= -0.3
    assert not torch.equal(before[:, frame], MEL.encode(inside).flatten(1, 2)[:, frame])


@pytest.mark.parametrize("lookahead", [0, 40, 100, 200])
@pytest.mark.parametrize("chunk", [1, 3])
def test_streamed_features_equal_whole_file(lookahead: int, chunk: int) -> None:
    encoder = MelAudioEncoder(AudioConfig(lookahead_ms=lookahead))
    around = encoder.past_samples + encoder.lookahead_samples
    audio = voice(around + 6 * 4000, 4)
    parts = [encoder.encode(audio[:, i : i + around + 4000 * chunk]) for i in range(0, 6 * 4000, 4000 * chunk)]
    assert torch.allclose(torch.cat(parts, dim=1), encoder.encode(audio), atol=1e-6)


def test_clip_features_equal_streamed_features(online: OnlineModel) -> None:
    """Context of silence, then the chunks: `step` and `clip_features` agree for every latent frame."""
    audio = voice(5 * 4000, 5)
    whole = online.clip_features(audio)
    padded = torch.nn.functional.pad(audio, (0, online.lookahead_samples))
    features, tail = whole[:, : online.config.context_latents], torch.zeros(1, online.audio_encoder.past_samples)
    features = online.clip_features(torch.zeros(1, 4000))[:, : online.config.context_latents]
    for latent in range(5):
        part = padded[:, 4000 * latent : 4000 * (latent + 1) + online.lookahead_samples]
        window_features, tail = online._features(features, tail, part)
        assert torch.allclose(
            window_features, whole[:, latent + 1 : latent + 2 + online.config.context_latents], atol=1e-6
        )
        features = window_features[:, 1:]


def test_config_rejects_unknown_encoders_and_lookaheads() -> None:
    with pytest.raises(ValueError, match="choose mel or wav2vec2"):
        build_audio_encoder(AudioConfig(encoder="whisper"))
    with pytest.raises(ValueError, match="choose 0 to 200"):
        AudioConfig(lookahead_ms=250)


def test_hash_encoder_maps_words_to_fixed_vectors_in_order() -> None:
    encoder = HashTextEncoder(MODEL)
    out = encoder.encode(["She smiles, sadly.", "smiles", "a b c d e f"])
    assert out.shape == (3, MODEL.text_tokens, MODEL.text_width)
    assert torch.equal(out[0, 1], out[1, 0])
    assert float(out[1, 1:].abs().sum()) == 0
    assert torch.equal(out, HashTextEncoder(MODEL).encode(["she smiles sadly", "SMILES", "a b c d"]))


def test_hash_encoder_word_depends_on_its_letters_only() -> None:
    """Not on Python's hash seed, so that a trained model understands its words in every process."""
    seed = int.from_bytes(hashlib.sha256(b"smiles").digest()[:7], "big")
    expected = torch.randn(MODEL.text_width, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(HashTextEncoder(MODEL).encode(["smiles"])[0, 0], expected)
