"""Model folders, characters and the offline sampler."""

import json
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch

from lpm_model.autoencoder.load import copy_autoencoder, load_autoencoder
from lpm_model.character import reference_positions, to_frames, to_video
from lpm_model.checkpoint import load_weights, read_weights, save_model
from lpm_model.config import REFERENCE_KINDS, to_mapping
from lpm_model.digests import file_digest
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.online import OnlineModel, load_online
from lpm_model.sampler import BaseModel, guided_velocity, load_base, sample_base, sample_window
from tests.lpm_model.tiny import MODEL, SIZE_PX, conditions, normal, online_config, transformer, voice


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, {"model": transformer()}, {"model": to_mapping(MODEL), "size_px": SIZE_PX}, {}, torch.float32)
    copy_autoencoder(encoder_folder, folder)
    return folder


def random_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (SIZE_PX, SIZE_PX, 3)).astype(np.uint8)


def test_saved_weights_load_equal(tmp_path: Path, dit: DiffusionTransformer) -> None:
    save_model(tmp_path, {"model": dit}, {"a": 1}, {"parent": Path("x")}, torch.float32)
    fresh = DiffusionTransformer(MODEL)
    load_weights(fresh, read_weights(tmp_path / "model.safetensors"), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), dit.state_dict().values(), strict=True))
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"parent": "x"}


def test_save_model_rounds_weights_to_bfloat16_but_not_statistics(tmp_path: Path, encoder_folder: Path) -> None:
    model = load_autoencoder(encoder_folder)
    save_model(tmp_path, {"model": model}, {}, {})
    stored = read_weights(tmp_path / "model.safetensors")
    assert stored["fold.weight"].dtype == torch.bfloat16
    assert stored["statistics.running_mean"].dtype == torch.float32
    assert torch.equal(stored["fold.weight"], model.fold.weight.bfloat16())


def test_equal_weights_have_equal_digests(tmp_path: Path, dit: DiffusionTransformer) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, {"model": dit}, {}, {})
    save_model(tmp_path / "c", {"model": transformer(seed=1)}, {}, {})
    a, b, c = (file_digest(tmp_path / name / "model.safetensors") for name in "abc")
    assert a == b != c


def test_model_folder_holds_no_pickle(base: Path) -> None:
    files = [path for path in base.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        with pytest.raises(ValueError, match=r".+"):
            pickletools.dis(path.read_bytes(), out=open("/dev/null", "w"))  # noqa: SIM115


def test_load_base_names_missing_weight_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        read_weights(tmp_path / "model.safetensors")


def test_load_online_rejects_base_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an Online LPM"):
        load_online(base)
    with pytest.raises(ValueError, match="is not a model folder"):
        load_base(tmp_path)


def test_loaded_online_model_streams_equal(online: OnlineModel, encoder_folder: Path, tmp_path: Path) -> None:
    config = {"model": to_mapping(MODEL), "online": to_mapping(online_config()), "size_px": SIZE_PX}
    save_model(tmp_path, {"model": online.backbone}, config, {}, torch.float32)
    copy_autoencoder(encoder_folder, tmp_path)
    loaded, audio = load_online(tmp_path, torch.float32), voice(6400, 1)
    frames = [m.step(m.init_state(m.character(random_image())), audio, audio, ["x"])[0] for m in (online, loaded)]
    assert int((frames[0].int() - frames[1].int()).abs().max()) <= 1


def test_bfloat16_online_model_streams(online: OnlineModel, encoder_folder: Path, tmp_path: Path) -> None:
    config = {"model": to_mapping(MODEL), "online": to_mapping(online_config()), "size_px": SIZE_PX}
    save_model(tmp_path, {"model": online.backbone}, config, {})
    copy_autoencoder(encoder_folder, tmp_path)
    loaded = load_online(tmp_path, torch.bfloat16)
    state = loaded.init_state(loaded.character(random_image()), batch=2)
    for _ in range(7):
        frames, state = loaded.step(state, voice(6400, 1, 2), voice(6400, 2, 2), ["x", "y"])
    loaded.reset(state, torch.tensor([True, False]), loaded.character(random_image(1)))
    frames, state = loaded.step(state, voice(6400, 1, 2), voice(6400, 2, 2), ["x", "y"])
    assert frames.shape == (2, 4, SIZE_PX, SIZE_PX, 3)
    assert state.position.tolist() == [2, 9]


def test_to_frames_inverts_to_video() -> None:
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(to_frames(to_video(frames))[0].numpy(), frames)


def test_reference_positions_are_negative_and_distinct() -> None:
    positions = reference_positions(list(REFERENCE_KINDS))
    assert len(set(positions.tolist())) == len(REFERENCE_KINDS)
    assert int(positions.max()) < 0
    with pytest.raises(ValueError, match="unknown reference kind 'hat'"):
        reference_positions(["global", "hat"])


def test_character_without_references_is_its_own_reference(online: OnlineModel) -> None:
    alone = online.character(random_image())
    assert torch.equal(alone.references[:, 0], alone.image[:, :, 0])
    both = online.character(random_image(), [random_image(1), random_image(2)], ["global", "expression_3"])
    assert both.references.shape == (1, 2, 16, 4, 4)
    assert both.positions.tolist() == [-1, -9]


def test_character_rejects_wrong_sizes_and_kinds(online: OnlineModel) -> None:
    with pytest.raises(ValueError, match="needs 32x32"):
        online.character(random_image()[:16])
    with pytest.raises(ValueError, match="2 references and 1 kinds"):
        online.character(random_image(), [random_image(1), random_image(2)], ["global"])


def test_model_rejects_wrong_audio_width(online: OnlineModel) -> None:
    with pytest.raises(ValueError, match="gives 960"):
        BaseModel(type(MODEL)(audio_width=100), online.autoencoder, SIZE_PX)


class StubModel(torch.nn.Module):
    """A stub model whose velocity leads from any noise to `clean`; text moves the target."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean
        self.patch = torch.nn.Linear(1, 1)

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, given: Conditions) -> torch.Tensor:
        target = self.clean + (0 if given.text is None else 1)
        return (noisy - target) / sigma[:, None, :, None, None].clamp(min=1e-6)


def test_sample_window_keeps_known_latents_and_reaches_prediction() -> None:
    clean = normal(1, 16, 5, 4, 4, seed=4)
    dit = StubModel(clean)
    known = normal(1, 16, 2, 4, 4, seed=6)
    generator = torch.Generator().manual_seed(0)
    made, states = sample_window(
        dit, known, 5, Conditions(), steps=6, guidance=1.0, generator=generator, keep=(1.0, 0.6)
    )  # type: ignore[arg-type]
    assert torch.equal(made[:, :, :2], known)
    assert torch.allclose(made[:, :, 2:], clean[:, :, 2:], atol=1e-4)
    assert set(states) == {1.0, 0.6}
    assert all(torch.equal(state[:, :, :2], known) for state in states.values())
    start = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(states[1.0][:, :, 2:], start)
    assert torch.allclose(states[0.6][:, :, 2:], 0.6 * start + 0.4 * clean[:, :, 2:], atol=1e-4)


def test_guidance_extrapolates_beyond_positive_pass() -> None:
    dit, given, sigma = StubModel(torch.zeros(1, 16, 1, 4, 4)), conditions(1), torch.ones(1, 1)
    noisy = normal(1, 16, 1, 4, 4)
    made = [guided_velocity(dit, noisy, sigma, given, scale) for scale in (0.0, 1.0, 3.0)]  # type: ignore[arg-type]
    assert torch.allclose(made[0], noisy)
    assert torch.allclose(made[1], noisy - 1)
    assert torch.allclose(made[2], noisy - 3)


@pytest.mark.parametrize(
    ("text", "audio", "velocity", "passes"),
    [
        (1.0, None, 11, 1),
        (1.0, 1.0, 11, 1),
        (3.0, None, 33, 2),
        (3.0, 3.0, 33, 2),
        (2.0, 5.0, 52, 3),
        (1.0, 2.0, 21, 3),
    ],
)
def test_separate_guidance_of_text_and_audio(text: float, audio: float | None, velocity: float, passes: int) -> None:
    """A model whose velocity is 1 for the text and 10 for the audio is scaled by either."""
    calls = []

    def dit(noisy: torch.Tensor, sigma: torch.Tensor, given: Conditions) -> torch.Tensor:
        calls.append(given)
        return torch.zeros_like(noisy) + (given.text is not None) + 10 * (given.speak is not None)

    noisy = normal(1, 16, 1, 4, 4)
    made = guided_velocity(dit, noisy, torch.ones(1, 1), conditions(1), text, audio)  # type: ignore[arg-type]
    assert torch.equal(made, torch.full_like(noisy, velocity))
    assert len(calls) == passes
    assert all(given.references is not None for given in calls), "identity is never guided away"


@pytest.mark.parametrize("latents", [1, 12, 14])
def test_sample_base_generates_any_length(base: Path, latents: int) -> None:
    model, audio = load_base(base, torch.float32), voice(4000 * latents, 1)
    who = model.character(random_image())
    frames = sample_base(model, who, audio, audio, ["she smiles"], steps=1, guidance=1.0, seed=3)
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (1, 4 * latents, SIZE_PX, SIZE_PX, 3))
    again = sample_base(model, who, audio, audio, ["she smiles"], steps=1, guidance=1.0, seed=3)
    assert torch.equal(frames, again)
