"""The active-speaker plug-in: its features and cut against closed forms and its authors', its weights as files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from components.curate.config import ScorerConfig
from components.curate.scorers import make_scorers, passports, try_extra
from components.curate.scorers.base import Clip
from components.curate.scorers.light_asd import LightAsd, mouth_pictures, speaking_scores
from components.curate.scorers.light_asd_net import LightAsdNet, load, mfcc
from components.curate.video.crops import Crop
from components.curate.video.faces import FEATURES, Track
from lpm_model.digests import file_digest

FRAMES = 24


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as published: training's second head is in it."""
    torch.manual_seed(0)
    state = LightAsdNet().state_dict()
    state |= {"lossV.FC.weight": torch.zeros(2, 128), "lossV.FC.bias": torch.zeros(2)}
    path = tmp_path_factory.mktemp("weights") / "light_asd.safetensors"
    save_file(state, path)
    return path


def clip(face: tuple[float, float, float, float] = (40, 20, 80, 80), **changes: Any) -> Clip:
    """A second of a grey picture with a white pixel row of a face's box in a source of 256 px, cut from (64, 32)."""
    values = np.zeros((FRAMES, len(FEATURES)), np.float32)
    values[:, :4] = np.array(face) * 1.5 + [64, 32, 64, 32]
    own: Any = SimpleNamespace(
        track=np.random.default_rng(0).normal(0, 3000, FRAMES * 1000).astype(np.int16),
        speech=np.ones(FRAMES, np.float32),
    )
    given = {
        "own": own, "start": 0, "pictures": np.full((FRAMES, 128, 128, 3), 90, np.uint8),
        "crop": Crop(x=64, y=32, side=192), "track": Track(start=0, shot=0, values=values), "others": [],
        "states": np.zeros(FRAMES, np.uint8), "confidence": np.ones(FRAMES, np.float32),
        "copied": np.zeros(FRAMES, bool), "strange": np.zeros(FRAMES, bool),
    }  # fmt: skip
    return Clip(**{**given, **changes})


def test_cepstra_are_those_that_the_network_was_trained_on() -> None:
    """Values of python_speech_features 0.6 for the same chirp."""
    at = np.arange(1200) / 16_000
    chirp = np.round(8000 * np.sin(2 * np.pi * (200 + 900 * at) * at))
    found = mfcc(chirp)
    assert found.shape == (6, 13)
    theirs = [18.1952, 31.215, 20.9211, 10.8229, 0.0921, -10.4074, -17.9785, -22.9518, -23.7508, -20.9714, -14.7861,
              -7.7646, -1.5216]  # fmt: skip
    np.testing.assert_allclose(found[3], theirs, atol=1e-3)
    louder = mfcc(10 * chirp)
    np.testing.assert_allclose(louder[:, 0] - found[:, 0], 2 * np.log(10), atol=1e-4)
    np.testing.assert_allclose(louder[:, 1:], found[:, 1:], atol=1e-3)


def test_the_mouth_is_cut_as_for_the_networks_training() -> None:
    """Half the detected side is 36 px: 50.4 px around its middle (60, 50), from 10.8 px above it, scaled to 112."""
    pictures = np.zeros((FRAMES, 128, 128, 3), np.uint8)
    pictures[:, 62, 60] = 255
    cut = mouth_pictures(clip(pictures=pictures))
    assert cut.shape == (FRAMES, 112, 112)
    y, x = np.unravel_index(cut[5].argmax(), (112, 112))
    scale = 112 / 50.4
    assert (x, y) == (pytest.approx((60 - 34.8) * scale, abs=1), pytest.approx((62 - 39.2) * scale, abs=1))


def test_a_face_at_the_edge_is_padded_with_grey() -> None:
    cut = mouth_pictures(clip(face=(-30, 90, 30, 150)))
    assert cut[0, -1, 0] == 110
    assert cut[0, 0, -1] == 90


def test_a_weight_file_gives_the_network_that_was_saved(weights: Path) -> None:
    torch.manual_seed(0)
    made, read = LightAsdNet().eval(), load(weights)
    faces, spectra = torch.rand(8, 112, 112) * 255, torch.randn(32, 13)
    with torch.inference_mode():
        first, second = made(faces, spectra), read(faces, spectra)
    assert first.shape == (8,)
    assert torch.equal(first, second)
    assert float(first.std()) > 0


def test_every_frame_gets_a_score_whatever_the_clips_length(weights: Path) -> None:
    short = clip(pictures=np.full((5, 128, 128, 3), 90, np.uint8))
    assert speaking_scores(load(weights), short).shape == (5,)


def test_agreement_with_a_network_that_always_sees_speech(weights: Path) -> None:
    net = load(weights)
    head = net.get_submodule("lossAV.FC")
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0]))
    states = np.array([1] * 18 + [2] * 6, np.uint8)
    given = clip(states=states)
    given.own.speech[:6] = 0.0
    assert LightAsd(net).score(given) == {"asd_speak_agreement": pytest.approx(12 / 18), "asd_score": 1.0}
    quiet: Any = SimpleNamespace(track=np.zeros(FRAMES * 1000, np.int16), speech=np.zeros(FRAMES, np.float32))
    assert LightAsd(net).score(clip(own=quiet)) == {"asd_speak_agreement": None, "asd_score": None}


def test_the_passport_names_the_given_weights(weights: Path) -> None:
    config = ScorerConfig(extra=("light_asd",), light_asd=str(weights))
    assert passports(config)[-1] == {
        "name": "light_asd", "version": "1", "licence": "MIT", "weights_sha256": file_digest(weights),
        "columns": ["asd_speak_agreement", "asd_score"],
    }  # fmt: skip
    assert any(isinstance(scorer, LightAsd) for scorer in make_scorers(config))


def test_missing_and_wrong_weights_are_explained(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file: give Light-ASD's weights"):
        passports(ScorerConfig(extra=("light_asd",)))
    pickled = tmp_path / "weights.safetensors"
    torch.save({"a": torch.zeros(1)}, pickled)
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load(pickled)
    with pytest.raises(ValueError, match=r"scorers\.light_asd is .*: give Light-ASD's weights as safetensors"):
        try_extra(ScorerConfig(extra=("light_asd",), light_asd=str(pickled)))
    other = tmp_path / "other.safetensors"
    save_file({"lossAV.FC.bias": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="does not hold the weights of Light-ASD"):
        load(other)
