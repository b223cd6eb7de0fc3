"""Training stages as configs: trainable parameters, sampled windows, accumulation, preference tuning."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.config import REFERENCE_KINDS, STATES
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.execution import Execution
from lpm_model.sampler import BaseModel
from lpm_model.training.base import train as base_training
from lpm_model.training.base.config import BaseTraining, Preference
from lpm_model.training.base.preference import Pairs, dominant_pair, preference_loss, score_samples
from lpm_model.training.base.train import BaseModule, freeze_all_but, train_base
from lpm_model.training.engine.data import Batch, ClipBatches, WindowSampling, latent_motion
from lpm_model.training.engine.shard_reader import Clip, read_clips
from pipelines.config import groups, load_config
from tests.killed import Killed, kill_after
from tests.lpm_model import tiny
from tests.lpm_model.tiny import normal

SMALL = {"model": tiny.MODEL, "steps": 2, "batch": 2, "clip_latents": 4, "crop_steps": 0, "warmup_steps": 0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, encoder: Path, dataset: Path) -> Path:
    """Train the model from which the stages are initialised."""
    folder = tmp_path_factory.mktemp("first")
    train_base(dataset, folder, BaseTraining(**SMALL, autoencoder=str(encoder)))
    return folder


@pytest.mark.parametrize("stage", groups()["stage"])
def test_each_stage_trains_only_its_trainable_params(
    stage: str, encoder: Path, dataset: Path, first: Path, tmp_path: Path
) -> None:
    settings = load_config([f"stage={stage}"]).train
    few = replace(settings.preference, conditions=min(settings.preference.conditions, 3), samples=3, sampler_steps=2)
    settings = replace(settings, **SMALL, preference=few, autoencoder=str(encoder), init_from=str(first))
    metrics = train_base(dataset, tmp_path, settings)
    assert math.isfinite(metrics["loss"])
    before, after = (load_file(folder / "model.safetensors") for folder in (first, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    if settings.trainable_params:
        assert all(any(re.search(pattern, name) for pattern in settings.trainable_params) for name in changed)
        assert any("blocks" in name for name in changed)
    else:
        assert {name.split(".")[0] for name in changed} >= {"patch", "blocks", "head"}


def test_speak_and_listen_stages_train_different_blocks() -> None:
    model = DiffusionTransformer(replace(tiny.MODEL, layers=12))
    taught = {}
    for stage in ("speak", "listen"):
        freeze_all_but(model, load_config([f"stage={stage}"]).train.trainable_params)
        taught[stage] = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert not taught["speak"] & taught["listen"]
    audio = {name for name, _ in model.named_parameters() if re.search(r"audio_|speak|listen", name)}
    assert taught["speak"] | taught["listen"] == audio
    with pytest.raises(ValueError, match="no parameter name matches 'ears'"):
        freeze_all_but(model, ["ears"])


def a_clip(states: list[int], latents: np.ndarray | None = None) -> Clip:
    """A clip with a state for each latent frame after the image."""
    count = len(states)
    values = np.zeros((16, 1 + count, 4, 4), np.float16) if latents is None else latents
    sound = np.zeros(4000 * count, np.int16)
    return Clip("c", values, values[:, :1].transpose(1, 0, 2, 3), ("global",), sound, sound, "x",
                np.repeat(np.array(states, np.uint8), 4))  # fmt: skip


def test_window_weight_is_fraction_of_frames_in_states() -> None:
    speak, listen = STATES["speak"], STATES["listen"]
    clip = a_clip([speak, speak, listen, listen, listen]).facts
    assert torch.allclose(WindowSampling(states=("speak",)).weights(clip, 3), torch.tensor([1.0, 0.5, 0.0, 0.0]))
    assert torch.allclose(WindowSampling(states=("listen",)).weights(clip, 3), torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert torch.allclose(WindowSampling().weights(clip, 3), torch.ones(4))


def test_expressive_exponent_favours_motion() -> None:
    latents = np.zeros((16, 6, 4, 4), np.float16)
    latents[:, 4:] = 2.0  # all motion is between latents 3 and 4
    clip = a_clip([1] * 5, latents)
    for exponent, expected in ((1.0, 2.0), (2.0, 4.0)):
        weights = WindowSampling(expressive=exponent).weights(clip.facts, 3, latent_motion(clip))
        assert weights.tolist() == [0.0, 0.0, expected, expected]


def test_batches_hold_voices_and_references_of_the_stage(encoder: Path, dataset: Path) -> None:
    clips, model = read_clips(dataset), BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)

    def batches(**changes: object) -> ClipBatches:
        return ClipBatches(clips, model, latents=4, batch=8, steps=range(8), seed=0, sampling=WindowSampling(**changes))  # type: ignore[arg-type]

    silent = batches(voices=("speak",)).make(0).conditions
    assert silent.speak is not None
    assert silent.listen is None
    for batch in batches(references=3, reference_prob=1.0):
        positions = batch.conditions.reference_positions
        assert positions is not None
        assert set(positions.tolist()) == {-REFERENCE_KINDS[kind] for kind in clips[0].kinds}
        assert batch.conditions.references is not None
        rows = dict(zip((clip.key for clip in clips), clips, strict=True))
        for row, key in enumerate(batch.keys):
            assert np.allclose(batch.conditions.references[row].numpy(), rows[key].references, atol=1e-3)
    assert {len(b.conditions.references[0]) for b in batches(references=2, reference_prob=0.5)} == {1, 2}  # type: ignore[index]
    with pytest.raises(ValueError, match="anybody in the states discard"):
        batches(states=("discard",))


def test_invalid_training_settings_name_the_choices() -> None:
    with pytest.raises(ValueError, match=r"voices are \['sing'\]: choose from speak, listen"):
        BaseTraining(voices=("sing",))
    with pytest.raises(ValueError, match="states are"):
        BaseTraining(states=())
    with pytest.raises(ValueError, match="accumulate"):
        BaseTraining(accumulate=0)
    with pytest.raises(ValueError, match="a pair needs at least 2"):
        Preference(conditions=1, samples=1)


def test_gradient_accumulation_equals_one_batch(
    encoder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accumulating each batch twice at half weight gives the same step as once."""
    plain = ClipBatches.make
    settings = BaseTraining(**SMALL, autoencoder=str(encoder), condition_dropout=0.0)
    train_base(dataset, tmp_path / "once", settings)
    monkeypatch.setattr(ClipBatches, "make", lambda self, step: plain(self, step // 2))
    train_base(dataset, tmp_path / "twice", replace(settings, accumulate=2))
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert all(torch.allclose(once[name].float(), twice[name].float(), atol=2e-3) for name in once)


def test_killed_run_with_accumulation_resumes_bit_equal(
    encoder: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = BaseTraining(**{**SMALL, "steps": 4}, autoencoder=str(encoder), accumulate=2, checkpoint_steps=2)
    train_base(dataset, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        kill_after(patch, BaseModule, 5)
        with pytest.raises(Killed):
            train_base(dataset, tmp_path / "killed", settings)
    train_base(dataset, tmp_path / "killed", settings)
    whole, killed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def gradients(model: DiffusionTransformer, given: Conditions) -> list[torch.Tensor]:
    model.zero_grad()
    model(normal(1, 16, 3, 4, 4, seed=1), torch.full((1, 3), 0.4), given).square().mean().backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def test_activation_checkpointing_preserves_gradients() -> None:
    model, given = tiny.transformer().requires_grad_(True), tiny.conditions(3)
    plain = gradients(model, given)
    model.set_execution(Execution(activation_checkpointing=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, gradients(model, given), strict=True))


def test_compiled_blocks_preserve_gradients() -> None:
    model, given = tiny.transformer(replace(tiny.MODEL, layers=1)).requires_grad_(True), tiny.conditions(3)
    plain = gradients(model, given)
    for block in model.blocks:
        block.compile()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, gradients(model, given), strict=True))


@pytest.mark.parametrize(
    ("scores", "pair"),
    [
        ([[1.0, 1.0], [0.0, 0.0]], (0, 1)),
        ([[1.0, 0.0], [0.0, 1.0]], None),  # each is better in one score
        ([[1.0, 1.0], [1.0, 1.0]], None),
        ([[0.0, 2.0], [2.0, 2.0], [2.0, 0.0], [0.5, 1.0]], (1, 3)),
        ([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]], (2, 0)),
    ],
)
def test_dominant_pair_needs_pareto_dominance(scores: list[list[float]], pair: tuple[int, int] | None) -> None:
    found = dominant_pair(torch.tensor(scores))
    if len(scores) == 4:
        assert found is not None
        assert found[0] == 1, "the one that loses to nobody"
    else:
        assert found == pair


def test_ground_truth_has_the_best_scores() -> None:
    truth = normal(1, 16, 4, 4, 4, seed=1)
    worse = truth + 0.5 * normal(1, 16, 4, 4, 4, seed=2)
    still = truth[:, :, :1].expand_as(truth)
    tinted = truth + 1.0
    scores = score_samples(torch.cat([truth, worse, still, tinted]), truth)
    assert scores[0].tolist() == [0.0, 0.0, 0.0]
    assert scores[1, 0] < 0
    assert scores[2, 1] < -5, "a frozen face"
    assert scores[3, 2] < -0.9, "another colour"
    assert abs(float(scores[3, 1])) < 1e-5, "which moves as it should"


def test_preference_loss_closed_form() -> None:
    even = torch.tensor([[0.3], [0.7]])
    assert float(preference_loss(even, even, 10.0)) == pytest.approx(math.log(2))
    better = torch.tensor([[0.2], [0.8]])
    assert float(preference_loss(better, even, 10.0)) == pytest.approx(-math.log(1 / (1 + math.exp(-2.0))))


def test_preference_tuning_lowers_preference_loss(first: Path, encoder: Path, dataset: Path, tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Without flow matching, the preference loss falls below its initial value, log 2."""
    losses: list[float] = []
    plain = BaseModule.training_step

    def spy(self: BaseModule, batch: Batch | Pairs, index: int) -> torch.Tensor:
        loss = plain(self, batch, index)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(base_training.BaseModule, "training_step", spy)
    settings = BaseTraining(
        **{**SMALL, "steps": 24}, autoencoder=str(encoder), init_from=str(first), condition_dropout=0.0,
        schedule="constant",
        preference=Preference(conditions=6, samples=6, sampler_steps=2, guidance=1.0, beta=200.0, flow_weight=0.0),
    )  # fmt: skip
    train_base(dataset, tmp_path, settings)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert np.mean(losses[-6:]) < 0.9 * math.log(2)
