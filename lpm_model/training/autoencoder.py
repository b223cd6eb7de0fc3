"""Trains the tiny video autoencoder from video files; `lpm autoencoder train FOLDER` runs it."""

import logging
import shutil
from collections.abc import Iterator, Sequence
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
from lpm_model.config import FRAMES_PER_LATENT, to_mapping
from lpm_model.progress import Progress
from lpm_model.training.config import AutoencoderTraining
from lpm_model.training.engine.data import step_generator
from lpm_model.training.engine.loop import StateFile, run, scheduled, take_step
from lpm_model.training.engine.muon import KernelMuon
from lpm_model.weight_shards import start_from

log = logging.getLogger(__name__)
MAX_FRAMES = 40_000
"""Frames kept in memory (2 GB at 128 px)."""


def read_videos(folder: Path, size_px: int, least_frames: int) -> list[NDArray[np.uint8]]:
    """Square videos of one size below a folder, each [T, H, W, 3]; other and short ones are skipped with a log line.

    Raises:
        ValueError: nothing usable.
    """
    import av

    videos: list[NDArray[np.uint8]] = []
    for path in sorted(folder.rglob("*.mp4")):
        if sum(map(len, videos)) >= MAX_FRAMES:
            log.warning("%s and later files are left out: %d frames are enough", path.name, MAX_FRAMES)
            break
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if (stream.width, stream.height) != (size_px, size_px):
                log.info("%s is %dx%d, not %d px square: skipped", path.name, stream.width, stream.height, size_px)
                continue
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        if len(frames) < least_frames:
            log.info("%s has %d frames, not %d: skipped", path.name, len(frames), least_frames)
            continue
        videos.append(np.stack(frames))
    if not videos:
        raise ValueError(
            f"{folder} holds no {size_px} px square MP4 of {least_frames} frames or more: "
            "render some with `lpm ingest data.source=performer`"
        )
    return videos


class CropBatches(IterableDataset[Tensor]):
    """Random clips and crops, a pure function of (seed, step)."""

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


def reconstruction_loss(video: Tensor, made: Tensor, settings: AutoencoderTraining) -> Tensor:
    """Absolute plus squared error, heavier where pixels move, and the error of differences in x, y and t."""
    error = made - video
    motion = (video - video.mean(dim=2, keepdim=True)).abs().mean(dim=1, keepdim=True)
    weight = 1 + settings.motion_weight * (motion / 0.1).clamp(max=1)
    plain = (weight * (error.abs() + 2 * error.square())).mean()
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3, 4))
    return plain + settings.edge_weight * edges


class AutoencoderModule(lightning.LightningModule):
    """Reconstruction with noise on the latents."""

    def __init__(self, model: TinyVideoAutoencoder, settings: AutoencoderTraining, start: int) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimizers take every step together
        self.model, self.settings, self.start = model, settings, start
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay), use_buffers=True)

    def training_step(self, video: Tensor, index: int) -> Tensor:
        self.model.statistics.train(not self.settings.decoder_only)
        latents = self.model.encode(video)
        generator = step_generator(self.settings.seed, self.start + index, "latents")
        least, most = self.settings.latent_noise
        level = least + (most - least) * torch.rand(len(latents), 1, 1, 1, 1, generator=generator)
        made = self.model.decode(latents + level * torch.randn(latents.shape, generator=generator))
        loss = reconstruction_loss(video, made, self.settings)
        self.manual_backward(loss)
        take_step(self, self.model.parameters(), self.settings.clip_norm)
        self.average.update_parameters(self.model)
        psnr = -10 * torch.log10((made - video).square().mean() / 4)
        self.log_dict({"loss": loss.detach(), "psnr_db": psnr.detach()}, prog_bar=True)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        """Muon for the kernels between features, AdamW for the ends (pixels, latents), norms and biases."""
        settings = self.settings
        ends = {self.model.fold, self.model.unfold, self.model.to_latent, self.model.from_latent}
        learning = [m for m in self.model.modules() if isinstance(m, nn.Conv2d) and m.weight.requires_grad]
        kernels = [m.weight for m in learning if m not in ends]
        known = {id(kernel) for kernel in kernels}
        rest = [weight for weight in self.model.parameters() if weight.requires_grad and id(weight) not in known]
        both = (
            KernelMuon(kernels, settings.muon_lr, settings.weight_decay),
            torch.optim.AdamW(rest, settings.learning_rate, (0.9, 0.95), weight_decay=settings.weight_decay),
        )
        return [scheduled(each, settings.steps, settings.warmup_steps, self.start) for each in both]


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
        settings: of the training.
        progress: shows the steps.
        size_px: side of the videos that are taken.

    Returns:
        PSNR on the last clips, over one in twenty videos that training never sees.
    """
    torch.manual_seed(settings.seed)
    every = read_videos(videos, size_px, settings.clip_frames)
    held_out = every[::20] if len(every) >= 20 else every
    seen = [v for i, v in enumerate(every) if i % 20] if len(every) >= 20 else every
    model = build_autoencoder(config)
    if settings.init_from:
        start_from(model, Path(settings.init_from))
    if settings.decoder_only:
        for part in (model.fold, model.down, model.encoder, model.encoder_mix, model.to_latent):
            part.requires_grad_(False)
    state = StateFile(folder / "state")
    module = AutoencoderModule(model, settings, state.step())
    batches = CropBatches(seen, settings, range(module.start, settings.steps))
    run(
        module, batches, settings.steps, state, settings.checkpoint_steps,
        description="train autoencoder", progress=progress, clip_norm=None,
    )  # fmt: skip
    best: TinyVideoAutoencoder = module.average.module  # type: ignore[assignment]
    metrics = {"psnr_db": held_out_psnr(best.eval(), held_out)}
    provenance = {
        "command": "lpm autoencoder train",
        "settings": to_mapping(settings),
        "videos": len(seen),
        "frames": sum(map(len, seen)),
        "metrics": metrics,
    }
    save_model(folder, {"model": best}, to_mapping(config), provenance)
    shutil.rmtree(state.path.parent, ignore_errors=True)
    return metrics


@torch.no_grad()
def held_out_psnr(model: TinyVideoAutoencoder, videos: Sequence[NDArray[np.uint8]], frames: int = 33) -> float:
    """Mean PSNR in dB of videos [T, H, W, 3] passed through the autoencoder, over their first `frames` frames."""
    values = []
    for video in videos:
        length = min(frames, len(video))
        clip = to_video(video[: length - (length - 1) % FRAMES_PER_LATENT])
        error = (model.decode(model.encode(clip)).clamp(-1, 1) - clip).square().mean() / 4
        values.append(-10 * torch.log10(error))
    return float(torch.stack(values).mean())
