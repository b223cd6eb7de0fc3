"""Training of the tiny autoencoder: PSNR, resuming, and Muon on convolution kernels."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.autoencoder.tiny import AutoencoderConfig
from lpm_model.training.autoencoder import (
    AutoencoderModule,
    AutoencoderTraining,
    CropBatches,
    held_out_psnr,
    read_videos,
    reconstruction_loss,
    train_autoencoder,
)
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.muon import KernelMuon, StackedMuon
from pipelines.cli import main
from serving.media.mp4 import Mp4Writer
from tests.killed import Killed, kill_after
from tests.lpm_model import tiny

SHAPE = AutoencoderConfig(encoder_widths=(8, 8, 16), decoder_widths=(8, 8, 16))
SETTINGS = AutoencoderTraining(
    steps=120, batch=2, clip_frames=5, crop_px=32, muon_lr=0.03, learning_rate=5e-3,
    warmup_steps=4, checkpoint_steps=50, ema_decay=0.8,
)  # fmt: skip


def write_video(path: Path, frames: int, seed: int, size_px: int = 48) -> None:
    """A coloured disc that moves over a gradient."""
    generator = np.random.default_rng(seed)
    colour, speed = generator.uniform(0, 255, 3), generator.uniform(0.5, 2.0, 2)
    y, x = np.mgrid[:size_px, :size_px]
    pictures = np.repeat((x + y)[None, :, :, None] * (255 / (2 * size_px)), frames, axis=0) * np.ones(3)
    for frame, picture in enumerate(pictures):
        centre = size_px / 2 + 8 * np.sin(speed * frame / 4)
        picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 100] = colour
    with Mp4Writer(path, height_px=size_px, width_px=size_px) as writer:
        writer.write(pictures.astype(np.uint8), np.zeros(1000 * frames, np.int16))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(3):
        write_video(folder / f"{seed}.mp4", 17, seed)
    return folder


def test_training_improves_psnr_and_killed_run_resumes_bit_equal(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = train_autoencoder(videos, tmp_path / "whole", SHAPE, SETTINGS, size_px=48)
    untrained = train_autoencoder(videos, tmp_path / "none", SHAPE, replace(SETTINGS, steps=1), size_px=48)
    assert metrics["psnr_db"] > untrained["psnr_db"] + 3
    with monkeypatch.context() as patch:
        kill_after(patch, AutoencoderModule, 60)
        with pytest.raises(Killed):
            train_autoencoder(videos, tmp_path / "killed", SHAPE, SETTINGS, size_px=48)
    assert CheckpointFile(tmp_path / "killed" / "checkpoint").step() == 50
    train_autoencoder(videos, tmp_path / "killed", SHAPE, SETTINGS, size_px=48)
    for name in ("model.safetensors", "config.json", "provenance.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert load_autoencoder(tmp_path / "whole").config == SHAPE


def test_decoder_only_training_leaves_latents_unchanged(videos: Path, tmp_path: Path) -> None:
    """The encoder is frozen: datasets encoded with it stay valid."""
    train_autoencoder(videos, tmp_path / "first", SHAPE, replace(SETTINGS, steps=20), size_px=48)
    again = replace(SETTINGS, steps=20, init_from=str(tmp_path / "first"), decoder_only=True, latent_noise=(0.0, 0.6))
    train_autoencoder(videos, tmp_path / "second", SHAPE, again, size_px=48)
    first, second = load_autoencoder(tmp_path / "first"), load_autoencoder(tmp_path / "second")
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    latents = first.encode(video)
    assert torch.equal(latents, second.encode(video))
    assert not torch.equal(first.decode(latents), second.decode(latents))


def test_autoencoder_train_command_writes_autoencoder_folder(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["steps=1", "batch=1", "clip_frames=5", "crop_px=32", "--size", "48", "--out", str(tmp_path / "made")]
    with pytest.raises(SystemExit) as ended:
        main(["autoencoder", "train", str(videos), *arguments])
    assert not ended.value.code
    assert "psnr_db" in capsys.readouterr().out
    assert load_autoencoder(tmp_path / "made").config == AutoencoderConfig()


def test_read_videos_skips_other_sizes_and_short_videos(videos: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 17, 0)
    write_video(tmp_path / "b.mp4", 4, 1)
    write_video(tmp_path / "c.mp4", 17, 2, size_px=32)
    assert [video.shape for video in read_videos(tmp_path, 48, 5)] == [(17, 48, 48, 3)]
    with pytest.raises(ValueError, match="holds no 64 px square MP4 of 5 frames or more"):
        read_videos(videos, 64, 5)


def test_kernel_muon_equals_muon_on_patch_matrices() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8)
    matrix = nn.Parameter(conv.weight.detach().permute(0, 2, 3, 1).reshape(6, -1).clone())
    patches = nn.functional.unfold(x, 3, padding=1).unflatten(1, (4, 9)).transpose(1, 2).flatten(1, 2)
    plain = torch.optim.Muon([matrix], 0.1, weight_decay=0.01)
    kernels = KernelMuon([conv.weight], 0.1, 0.01)
    for _ in range(3):
        conv.zero_grad()
        conv(x).square().mean().backward()
        kernels.step()
        plain.zero_grad()
        (matrix @ patches).square().mean().backward()
        plain.step()
    seen = conv.weight.detach().permute(0, 2, 3, 1).reshape(6, -1)
    assert torch.allclose(seen, matrix.detach(), atol=2e-3)  # Muon orthogonalises in bfloat16


def test_crop_batches_are_deterministic_and_loss_of_identity_is_zero() -> None:
    settings = AutoencoderTraining(batch=2, clip_frames=5, crop_px=16)
    videos = [np.random.default_rng(i).integers(0, 255, (9, 24, 24, 3)).astype(np.uint8) for i in range(2)]
    made = [list(CropBatches(videos, settings, range(1, 3))) for _ in range(2)]
    assert made[0][0].shape == (2, 3, 5, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))
    video = made[0][0]
    assert reconstruction_loss(video, video, settings) == 0
    assert reconstruction_loss(video, video + 0.1, settings) > 0


@pytest.mark.parametrize("frames", [1, 6, 40])
def test_held_out_psnr_accepts_videos_of_any_length(frames: int) -> None:
    video = np.full((frames, 16, 16, 3), 128, np.uint8)
    assert math.isfinite(held_out_psnr(tiny.autoencoder(), [video]))


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8)])
def test_stacked_muon_equals_muon(shape: tuple[int, int]) -> None:
    """Compare with torch's Muon on matrices of two shapes, one of them without a gradient."""
    torch.manual_seed(0)
    alone = [torch.nn.Parameter(torch.randn(size)) for size in (shape, (4, 6), shape, shape)]
    together = [torch.nn.Parameter(weight.detach().clone()) for weight in alone]
    one = torch.optim.Muon(alone, 0.02, weight_decay=0.01)
    all_at_once = StackedMuon(together, 0.02, weight_decay=0.01)
    for _ in range(3):
        for weight, other in zip(alone[:3], together[:3], strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        one.step()
        all_at_once.step()
    for weight, other in zip(alone, together, strict=True):
        assert torch.allclose(weight, other, atol=1e-3)
    assert not torch.equal(alone[0], alone[2])
