"""Training of the tiny video autoencoder from video files; `lpm autoencoder train FOLDER` runs it."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import IterableDataset

from lpm_model.autoencoder.tiny import AutoencoderConfig, TinyVideoAutoencoder, build_autoencoder
from lpm_model.character import to_video
from lpm_model.checkpoint import save_model
from lpm_model.config import FRAMES_PER_LATENT, setting, to_mapping
from lpm_model.progress import Progress
from lpm_model.training.engine.checkpoints import CheckpointFile
from lpm_model.training.engine.data import step_generator
from lpm_model.training.engine.loop import run
from lpm_model.training.engine.muon import KernelMuon
from lpm_model.training.engine.optimizers import step_optimizers, with_schedule
from lpm_model.weight_shards import init_weights_from

log = logging.getLogger(__name__)
MAX_FRAMES = 40_000
"""Maximum number of frames in memory (2 GB at 128 px)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderTraining:
    """Settings of the tiny video autoencoder's training from pixels."""

    steps: int = setting(2000, help="Optimizer steps.")
    batch: int = setting(8, help="Clips per step.")
    clip_frames: int = setting(9, help="Frames of a clip, 4k + 1.")
    crop_px: int = setting(96, help="Side of the random crop.")
    learning_rate: float = setting(
        1.5e-3,
        help="Peak learning rate of AdamW, which trains the outer layers, norms and biases.",
    )
    muon_lr: float = setting(0.01, help="Peak learning rate of Muon, which trains the kernels between features.")
    weight_decay: float = setting(0.01, help="Weight decay of both optimizers.")
    clip_norm: float = setting(1.0, help="Gradient norm limit.")
    warmup_steps: int = setting(100, help="Optimizer steps of linear warm-up, before a cosine schedule.")
    ema_decay: float = setting(
        0.998, help="Decay of the moving average of the weights (EMA), which the autoencoder folder receives."
    )
    latent_noise: tuple[float, float] = setting(
        (0.1, 0.1),
        help="Bounds of the noise on normalised latents, which makes the decoder tolerate errors of a generator.",
    )
    init_from: str = setting("", help="Folder of an autoencoder to initialise from; empty = random weights.")
    decoder_only: bool = setting(False, help="Freeze the encoder, and with it all latents.")
    edge_weight: float = setting(0.5, help="Loss weight of differences between neighbouring pixels and frames.")
    motion_weight: float = setting(3.0, help="Additional loss weight of pixels that move.")
    checkpoint_steps: int = setting(500, help="Optimizer steps between the checkpoints that a killed run resumes from.")
    seed: int = setting(0, help="Seed of weights, data order and noise.")


def read_videos(folder: Path, size_px: int, min_frames: int) -> list[NDArray[np.uint8]]:
    """Read the square videos of one size below a folder; other sizes and short videos are skipped with a log line.

    Returns:
        uint8 [T, H, W, 3] each.

    Raises:
        ValueError: no usable video.
    """
    import av

    videos: list[NDArray[np.uint8]] = []
    for path in sorted(folder.rglob("*.mp4")):
        if sum(map(len, videos)) >= MAX_FRAMES:
            log.warning("%s and later files are skipped: the limit is %d frames", path.name, MAX_FRAMES)
            break
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if (stream.width, stream.height) != (size_px, size_px):
                log.info("%s is %dx%d, not %d px square: skipped", path.name, stream.width, stream.height, size_px)
                continue
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        if len(frames) < min_frames:
            log.info("%s has %d frames, not %d: skipped", path.name, len(frames), min_frames)
            continue
        videos.append(np.stack(frames))
    if not videos:
        raise ValueError(
            f"{folder} holds no {size_px} px square MP4 of {min_frames} frames or more: "
            "render some with `lpm ingest data.source=performer`"
        )
    return videos


class CropBatches(IterableDataset[Tensor]):
    """Random crops of random clips, a pure function of (seed, step)."""

    def __init__(self, videos: Sequence[NDArray[np.uint8]], settings: AutoencoderTraining, steps: range) -> None:
        self.videos, self.settings, self.steps = videos, settings, steps

    def __iter__(self) -> Iterator[Tensor]:
        for step in self.steps:
            generator = step_generator(self.settings.seed, step, "crops")
            yield torch.cat([self._clip(generator) for _ in range(self.settings.batch)])

    def _clip(self, generator: torch.Generator) -> Tensor:
        def pick(stop: int) -> int:
            return int(torch.randint(max(stop, 1), (1,), generator=generator))

        settings = self.settings
        video = self.videos[pick(len(self.videos))]
        start, side = pick(len(video) - settings.clip_frames + 1), settings.crop_px
        top, left = pick(video.shape[1] - side + 1), pick(video.shape[2] - side + 1)
        cut = video[start : start + settings.clip_frames, top : top + side, left : left + side]
        return to_video(cut[:, :, ::-1] if pick(2) else cut)


def reconstruction_loss(video: Tensor, reconstruction: Tensor, settings: AutoencoderTraining) -> Tensor:
    """Return the absolute plus squared error, weighted by motion, plus the error of differences in x, y and t.

    Args:
        video: [B, 3, T, H, W] in [-1, 1].
        reconstruction: [B, 3, T, H, W].
        settings: loss weights.
    """
    error = reconstruction - video
    motion = (video - video.mean(dim=2, keepdim=True)).abs().mean(dim=1, keepdim=True)
    weight = 1 + settings.motion_weight * (motion / 0.1).clamp(max=1)
    plain = (weight * (error.abs() + 2 * error.square())).mean()
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
    return plain + settings.edge_weight * edges


class AutoencoderModule(lightning.LightningModule):
    """Reconstruction with noisy latents."""

    def __init__(self, model: TinyVideoAutoencoder, settings: AutoencoderTraining, start: int) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimizers take every step together
        self.model, self.settings, self.start = model, settings, start
        self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)

    def training_step(self, video: Tensor, index: int) -> Tensor:
        self.model.statistics.train(not self.settings.decoder_only)
        latents = self.model.encode(video)
        generator = step_generator(self.settings.seed, self.start + index, "latents")
        low, high = self.settings.latent_noise
        level = low + (high - low) * torch.rand(len(latents), 1, 1, 1, 1, generator=generator)
        reconstruction = self.model.decode(latents + level * torch.randn(latents.shape, generator=generator))
        loss = reconstruction_loss(video, reconstruction, self.settings)
        self.manual_backward(loss)
        step_optimizers(self, self.model.parameters(), self.settings.clip_norm)
        self.ema.update_parameters(self.model)
        psnr = -10 * torch.log10((reconstruction - video).square().mean() / 4)
        self.log_dict({"loss": loss.detach(), "psnr_db": psnr.detach()}, prog_bar=True)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """Build Muon for kernels between features, AdamW for the outer layers (pixels, latents), norms and biases."""
        settings = self.settings
        outer = {self.model.fold, self.model.unfold, self.model.to_latent, self.model.from_latent}
        trainable = [m for m in self.model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
        kernels = [m.weight for m in trainable if m not in outer]
        known = {id(kernel) for kernel in kernels}
        rest = [weight for weight in self.model.parameters() if weight.requires_grad and id(weight) not in known]
        both = (
            KernelMuon(kernels, settings.muon_lr, settings.weight_decay),
            torch.optim.AdamW(rest, settings.learning_rate, (0.9, 0.95), weight_decay=settings.weight_decay),
        )
        return [with_schedule(each, settings.steps, settings.warmup_steps, self.start) for each in both]


def train_autoencoder(
    videos: Path,
    folder: Path,
    config: AutoencoderConfig,
    settings: AutoencoderTraining,
    progress: Progress | None = None,
    size_px: int = 128,
) -> dict[str, float]:
    """Train from a folder of square MP4s and write an autoencoder folder.

    Args:
        videos: folder with the MP4s.
        folder: output: model.safetensors (bfloat16), config.json, provenance.json.
        config: shape of the model.
        settings: settings of the training.
        progress: shows the steps.
        size_px: side of the videos to use.

    Returns:
        PSNR in dB over the one in twenty videos that are held out.
    """
    torch.manual_seed(settings.seed)
    all_videos = read_videos(videos, size_px, settings.clip_frames)
    held_out = all_videos[::20] if len(all_videos) >= 20 else all_videos
    training = [v for i, v in enumerate(all_videos) if i % 20] if len(all_videos) >= 20 else all_videos
    model = build_autoencoder(config)
    if settings.init_from:
        init_weights_from(model, Path(settings.init_from))
    if settings.decoder_only:
        for part in (model.fold, model.down, model.encoder, model.encoder_mix, model.to_latent):
            part.requires_grad_(False)
    checkpoint = CheckpointFile(folder / "checkpoint")
    module = AutoencoderModule(model, settings, checkpoint.step())
    batches = CropBatches(training, settings, range(module.start, settings.steps))
    run(
        module, batches, settings.steps, checkpoint, settings.checkpoint_steps,
        description="train autoencoder", progress=progress,
    )  # fmt: skip
    best: TinyVideoAutoencoder = module.ema.module  # type: ignore[assignment]
    metrics = {"psnr_db": held_out_psnr(best.eval(), held_out)}
    provenance = {
        "command": "lpm autoencoder train",
        "settings": to_mapping(settings),
        "videos": len(training),
        "frames": sum(map(len, training)),
        "metrics": metrics,
    }
    save_model(folder, {"model": best}, to_mapping(config), provenance)
    shutil.rmtree(checkpoint.path.parent, ignore_errors=True)
    return metrics


@torch.no_grad()
def held_out_psnr(model: TinyVideoAutoencoder, videos: Sequence[NDArray[np.uint8]], frames: int = 33) -> float:
    """Return the mean PSNR in dB of the reconstruction of videos [T, H, W, 3], over their first `frames` frames."""
    values = []
    for video in videos:
        length = min(frames, len(video))
        clip = to_video(video[: length - (length - 1) % FRAMES_PER_LATENT])
        error = (model.decode(model.encode(clip)).clamp(-1, 1) - clip).square().mean() / 4
        values.append(-10 * torch.log10(error))
    return float(torch.stack(values).mean())
