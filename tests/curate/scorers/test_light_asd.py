"""The Light-ASD scorer: MFCCs and mouth crops against closed forms and the authors' values, weights as files."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from components.curate.config import ScorerConfig
from components.curate.scorers import describe_scorers, make_scorers, validate_optional
from components.curate.scorers.base import ClipView
from components.curate.scorers.light_asd import LightAsd, mouth_crops, speaking_scores
from components.curate.scorers.light_asd_net import LightAsdNet, load, mfcc
from components.curate.video.crops import Crop
from components.curate.video.faces import FEATURES, Track
from lpm_model.digests import file_digest

FRAMES = 24


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file as published, with the auxiliary head of the training."""
    torch.manual_seed(0)
    state = LightAsdNet().state_dict()
    state |= {"lossV.FC.weight": torch.zeros(2, 128), "lossV.FC.bias": torch.zeros(2)}
    path = tmp_path_factory.mktemp("weights") / "light_asd.safetensors"
    save_file(state, path)
    return path


def clip(face: tuple[float, float, float, float] = (40, 20, 80, 80), **changes: Any) -> ClipView:
    """One second of a grey clip, cropped from (64, 32) of a 256 px source, with a face box."""
    values = np.zeros((FRAMES, len(FEATURES)), np.float32)
    values[:, :4] = np.array(face) * 1.5 + [64, 32, 64, 32]
    analysis: Any = SimpleNamespace(
        track=np.random.default_rng(0).normal(0, 3000, FRAMES * 1000).astype(np.int16),
        speech=np.ones(FRAMES, np.float32),
    )
    given = {
        "analysis": analysis, "start": 0, "rgb": np.full((FRAMES, 128, 128, 3), 90, np.uint8),
        "crop": Crop(x=64, y=32, side=192), "track": Track(start=0, shot=0, values=values), "others": [],
        "states": np.zeros(FRAMES, np.uint8), "confidence": np.ones(FRAMES, np.float32),
        "copied": np.zeros(FRAMES, bool), "offscreen_speech": np.zeros(FRAMES, bool),
    }  # fmt: skip
    return ClipView(**{**given, **changes})


def test_mfcc_matches_python_speech_features() -> None:
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


def test_mouth_crops_match_the_networks_training() -> None:
    """Half the detected side is 36 px: 50.4 px around its middle (60, 50), from 10.8 px above it, scaled to 112."""
    rgb = np.zeros((FRAMES, 128, 128, 3), np.uint8)
    rgb[:, 62, 60] = 255
    crops = mouth_crops(clip(rgb=rgb))
    assert crops.shape == (FRAMES, 112, 112)
    y, x = np.unravel_index(crops[5].argmax(), (112, 112))
    scale = 112 / 50.4
    assert (x, y) == (pytest.approx((60 - 34.8) * scale, abs=1), pytest.approx((62 - 39.2) * scale, abs=1))


def test_mouth_crops_pad_faces_at_the_border_with_grey() -> None:
    crops = mouth_crops(clip(face=(-30, 90, 30, 150)))
    assert crops[0, -1, 0] == 110
    assert crops[0, 0, -1] == 90


def test_load_restores_the_saved_network(weights: Path) -> None:
    torch.manual_seed(0)
    made, read = LightAsdNet().eval(), load(weights)
    faces, spectra = torch.rand(8, 112, 112) * 255, torch.randn(32, 13)
    with torch.inference_mode():
        first, second = made(faces, spectra), read(faces, spectra)
    assert first.shape == (8,)
    assert torch.equal(first, second)
    assert float(first.std()) > 0


def test_speaking_scores_cover_every_frame_of_short_clips(weights: Path) -> None:
    short = clip(rgb=np.full((5, 128, 128, 3), 90, np.uint8))
    assert speaking_scores(load(weights), short).shape == (5,)


def test_asd_agreement_with_a_network_that_always_reports_speech(weights: Path) -> None:
    net = load(weights)
    head = net.get_submodule("lossAV.FC")
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0]))
    states = np.array([1] * 18 + [2] * 6, np.uint8)
    given = clip(states=states)
    given.analysis.speech[:6] = 0.0
    assert LightAsd(net).score(given) == {"asd_speak_agreement": pytest.approx(12 / 18), "asd_score": 1.0}
    quiet: Any = SimpleNamespace(track=np.zeros(FRAMES * 1000, np.int16), speech=np.zeros(FRAMES, np.float32))
    assert LightAsd(net).score(clip(analysis=quiet)) == {"asd_speak_agreement": None, "asd_score": None}


def test_describe_reports_the_digest_of_the_weights(weights: Path) -> None:
    config = ScorerConfig(extra=("light_asd",), light_asd=str(weights))
    assert describe_scorers(config)[-1] == {
        "name": "light_asd", "version": "1", "licence": "MIT", "weights_sha256": file_digest(weights),
        "columns": ["asd_speak_agreement", "asd_score"],
    }  # fmt: skip
    assert any(isinstance(scorer, LightAsd) for scorer in make_scorers(config))


def test_missing_and_wrong_weights_are_reported(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file: give Light-ASD's weights"):
        describe_scorers(ScorerConfig(extra=("light_asd",)))
    pickled = tmp_path / "weights.safetensors"
    torch.save({"a": torch.zeros(1)}, pickled)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(pickled)
    with pytest.raises(ValueError, match=r"scorers\.light_asd is .*: give Light-ASD's weights as safetensors"):
        validate_optional(ScorerConfig(extra=("light_asd",), light_asd=str(pickled)))
    other = tmp_path / "other.safetensors"
    save_file({"lossAV.FC.bias": torch.zeros(3)}, other)
    with pytest.raises(ValueError, match="does not hold the weights of Light-ASD"):
        load(other)
