"""Validation on held-out people: conditioning gap, bootstrap interval, videos, no effect on training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from components.dataset.shards import write_shards
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.character import to_frames
from lpm_model.sampler import BaseModel
from lpm_model.training.base.config import BaseTraining, Validation
from lpm_model.training.base.train import BaseModule, train_base
from lpm_model.training.base.validation import (
    ConditioningGap,
    HeldOutWindows,
    bootstrap,
    conditioning_gaps,
    gap_metrics,
)
from lpm_model.training.engine.shard_reader import read_clips
from pipelines.cli import main
from tests.killed import Killed, kill_after
from tests.lpm_model import tiny

SETTINGS = BaseTraining(
    model=tiny.MODEL, steps=4, batch=2, clip_latents=4, crop_steps=0, warmup_steps=0, checkpoint_steps=1,
    validation=Validation(every_steps=2, held_out_fraction=0.5, windows=4, videos=1, sampler_steps=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder, clips=8)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """Clips whose frames are bright while the person's own audio is loud and independent of the partner's audio."""
    folder = tmp_path_factory.mktemp("spoken")

    def clips() -> object:
        for number in range(24):
            draw = np.random.default_rng(number)
            loud = draw.integers(0, 2, 16)
            voices = [np.repeat(level, 4000) * draw.integers(-9000, 9000, 64000) for level in (loud, 1 - loud[::-1])]
            latents = np.zeros((16, 17, 4, 4), np.float16)
            latents[:, 1:] = 2.0 * loud[None, :, None, None]
            half = [[1, 33], [2, 32]]
            yield f"clip{number:02d}", {
                "latents": latents, "references": latents[:, :1].transpose(1, 0, 2, 3),
                "speak": voices[0].astype(np.int16), "listen": voices[1].astype(np.int16),
                "json": {"caption": "", "reference_kinds": ["global"], "states": half, "person_id": f"p{number}"},
            }  # fmt: skip

    write_shards(folder / "shards", clips(), 8)  # type: ignore[arg-type]
    digest = load_autoencoder(encoder).digest
    about = {"digest": "s" * 64, "size_px": tiny.SIZE_PX, "autoencoder_digest": digest}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def with_encoder(encoder: Path, **changes: object) -> BaseTraining:
    return replace(SETTINGS, autoencoder=str(encoder), **changes)


def test_bootstrap_interval_ignores_copies_within_a_group() -> None:
    assert bootstrap(torch.full((6,), 0.25), list("aabbcc")) == (0.25, 0.25)
    values, names = torch.randn(20, generator=torch.Generator().manual_seed(0)), [f"{i:02d}" for i in range(20)]
    copies = [name for name in names for _ in range(4)]
    assert bootstrap(values, names) == pytest.approx(bootstrap(values.repeat_interleave(4), copies))


def test_bootstrap_interval_covers_mean_in_90_percent() -> None:
    draws = torch.randn(300, 40, generator=torch.Generator().manual_seed(1)) + 0.7
    intervals = [bootstrap(row, [str(i) for i in range(40)]) for row in draws]
    share = float(np.mean([low < 0.7 < high for low, high in intervals]))
    assert 0.84 < share < 0.94


def test_conditioning_gap_of_unused_voice_is_zero(dataset: Path, encoder: Path) -> None:
    torch.manual_seed(0)
    model = BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)
    held_out = HeldOutWindows(read_clips(dataset), model, SETTINGS)
    for voice in ("speak", "listen"):
        gap = held_out.conditioning_gap(model.dit, voice)  # values of the audio begin at zero
        assert gap.mean == gap.low == gap.high == 0
        assert gap.loss > 0
        assert 2 <= gap.clips <= gap.windows == 4


def test_windows_match_state_and_are_exchanged_between_people(spoken: Path, encoder: Path) -> None:
    model = BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)
    held_out = HeldOutWindows(read_clips(spoken), model, replace(SETTINGS, validation=Validation(windows=100)))
    assert set(held_out.sets) == {"speak", "listen"}
    for voice, middle in (("speak", range(7)), ("listen", range(7, 17))):
        chosen = held_out.sets[voice]
        assert len(chosen) == len(set(chosen))
        assert all(start in middle and start % 3 == 0 for _, start in chosen)
        assert all(held_out.exchange_partner(chosen, n)[0] != place for n, (place, _) in enumerate(chosen))


def test_conditioning_gap_is_positive_for_the_voice_that_drives_motion(
    spoken: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = with_encoder(
        encoder, steps=120, batch=8, checkpoint_steps=1000, ema_decay=0.9, condition_dropout=0.0,
        validation=Validation(every_steps=1000, held_out_fraction=0.25, windows=24, videos=0),
    )  # fmt: skip
    metrics = train_base(spoken, tmp_path / "base", settings)
    assert metrics["speak_conditioning_gap_low"] > 0.1 * metrics["validation_loss"]
    assert abs(metrics["listen_conditioning_gap"]) < 0.2 * metrics["speak_conditioning_gap"]
    again = gap_metrics(conditioning_gaps(tmp_path / "base", spoken, 24))
    rounding = 0.02 * metrics["speak_conditioning_gap"]  # the folder is bfloat16
    assert again == pytest.approx({name: metrics[name] for name in again}, rel=0.02, abs=rounding)
    arguments = [
        "model",
        "conditioning-gap",
        "--base",
        str(tmp_path / "base"),
        "--dataset",
        str(spoken),
        "--windows",
        "24",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "speak  exchanged: loss" in out
    assert json.loads(out.splitlines()[-1]) == pytest.approx(again, abs=1e-5)


def test_validation_does_not_change_training_and_held_out_clips_are_not_trained_on(
    dataset: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    plain = BaseModule.training_step

    def spy(self: BaseModule, batch: object, index: int) -> object:
        seen.update(batch.keys)  # type: ignore[attr-defined]
        return plain(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(BaseModule, "training_step", spy)
    shown: list[str] = []
    metrics = train_base(
        dataset,
        tmp_path / "measured",
        with_encoder(encoder, steps=20, validation=replace(SETTINGS.validation, every_steps=10)),
        save_video=lambda name, *_: shown.append(name),
    )
    learned, held_out = read_clips(dataset).split(0.5)
    assert seen == {facts.key for facts in learned.facts}
    assert metrics["clips"] == 4 == len(held_out)
    assert shown == [f"step-{step:06d}-speak-0" for step in (10, 20)]
    without = with_encoder(encoder, steps=20, validation=Validation(held_out_fraction=0.5))
    train_base(dataset, tmp_path / "plain", without)
    measured, unmeasured = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("measured", "plain"))
    assert measured == unmeasured


@pytest.mark.parametrize("steps", [3, 4])
def test_killed_run_has_same_validation_metrics(
    steps: int, dataset: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the last step, and after it but before the model folder is written."""
    settings = with_encoder(encoder)
    whole = train_base(dataset, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        if steps < settings.steps:
            kill_after(patch, BaseModule, steps)
        else:
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            train_base(dataset, tmp_path / "killed", settings)
        if steps < settings.steps:
            with pytest.raises(Killed):
                train_base(dataset, tmp_path / "killed", settings)
    assert train_base(dataset, tmp_path / "killed", settings) == whole


def test_validation_video_shows_ground_truth_next_to_sample(dataset: Path, encoder: Path) -> None:
    model = BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)
    held_out = HeldOutWindows(read_clips(dataset), model, SETTINGS)
    frames, sound = held_out.video(model.dit, "speak", 0)
    side = tiny.SIZE_PX
    assert frames.shape == (12, side, 2 * side, 3)
    assert sound.shape == (12000,)
    place, start = held_out.sets["speak"][0]
    clip = held_out.source.clips[place]
    truth = torch.from_numpy(clip.latents[None, :, start : start + 4]).float()
    decoded: NDArray[np.uint8] = to_frames(model.autoencoder.decode(truth))[0, 1:].numpy()
    assert np.abs(frames[:, :, :side].astype(int) - decoded).max() <= 1
    span = slice(4000 * start, 4000 * (start + 3))
    mixed = clip.speak[span].astype(int) + clip.listen[span]
    assert np.abs(sound - mixed).max() <= 2


def test_validation_without_held_out_clips_is_reported(
    dataset: Path, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"set train\.validation\.held_out_fraction"):
        Validation(every_steps=5)
    with pytest.raises(ValueError, match="held_out_fraction is 1"):
        Validation(held_out_fraction=1.0)
    model = BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)
    long = replace(SETTINGS, clip_latents=8)  # a window of this length never shows more listening than speaking
    assert list(HeldOutWindows(read_clips(dataset), model, long).sets) == ["speak"]
    assert "in which people listen" in caplog.text
    with pytest.raises(ValueError, match="raise held_out_fraction"):
        HeldOutWindows(list(read_clips(dataset))[:1], model, SETTINGS)
    train_base(dataset, tmp_path / "base", with_encoder(encoder, steps=1, validation=Validation()))
    with pytest.raises(ValueError, match="was trained on every clip"):
        conditioning_gaps(tmp_path / "base", dataset, 4)


def test_validation_loss_averages_all_windows() -> None:
    gaps = {"speak": ConditioningGap(1.0, 0.1, 0.0, 0.2, 3, 2), "listen": ConditioningGap(2.0, 0.3, 0.2, 0.4, 1, 1)}
    assert gap_metrics(gaps)["validation_loss"] == 1.25
    assert gap_metrics(gaps)["listen_conditioning_gap_low"] == 0.2
