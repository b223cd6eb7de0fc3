"""Preview training batches on one HTML page: video, both voices, captions, references, states and loss weights."""

import base64
import io
import tempfile
import wave
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.character import to_frames
from lpm_model.config import AUDIO_RATE, FRAMES_PER_LATENT, SAMPLES_PER_LATENT, STATES
from lpm_model.latent_codec import LatentCodec
from lpm_model.losses import motion_weights
from lpm_model.progress import Progress
from lpm_model.sampler import BaseModel
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.base.train import clip_batches
from lpm_model.training.engine.data import Batch, ClipBatches, Window, read_dataset
from lpm_model.training.engine.shard_reader import Clip, ShardClips, read_clips
from serving.media.mp4 import Mp4Writer

COLOURS = {"idle": "#9e9e9e", "speak": "#2e7d32", "listen": "#1565c0", "discard": "#c62828"}
SHOWN_PX = 192


def preview(dataset: Path, page: Path, settings: BaseTraining, batches: int, progress: Progress) -> int:
    """Write a page with batches of a training run.

    Args:
        dataset: folder that curate wrote.
        page: self-contained HTML file to write.
        settings: training settings; the same settings, seed and dataset give the same batches.
        batches: number of batches, spread evenly over the training steps.
        progress: progress display.

    Returns:
        Number of windows on the page.

    Raises:
        ValueError: the dataset is empty, too short or was encoded with another autoencoder.
    """
    import jinja2

    encoder = load_autoencoder(Path(settings.autoencoder) if settings.autoencoder else None)
    about = read_dataset(dataset, encoder.digest)
    encoders = Path(settings.encoders) if settings.encoders else None
    torch.manual_seed(settings.seed)
    clips, _ = read_clips(dataset, settings.loader_mb * 10**6).split(settings.validation.held_out_fraction)
    source = clip_batches(clips, BaseModel(settings.model, encoder, about["size_px"], encoders), settings, 0)
    total = settings.steps * settings.accumulate
    steps = sorted({index * total // batches for index in range(min(batches, total))})
    found: list[dict[str, Any]] = [
        {"step": step // settings.accumulate, "rows": _rows(source, source.make(step), clips, encoder, settings)}
        for step in progress.track(steps, "preview", len(steps))
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(
        environment.get_template("preview.html").render(
            dataset=dataset.name,
            digest=about["digest"],
            clips=sum(len(bucket.clip_indices) for bucket in source.buckets),
            batches=found,
            colours=COLOURS,
        )
    )
    return sum(len(batch["rows"]) for batch in found)


def _rows(
    source: ClipBatches, batch: Batch, clips: ShardClips, encoder: VideoAutoencoder, settings: BaseTraining
) -> list[dict[str, Any]]:
    absolute = LatentCodec.from_config(settings.model).decode_clip(batch.latents)
    weights = motion_weights(batch.latents[:, :, 1:], settings.motion_weight)
    references = batch.conditions.references
    assert references is not None
    rows = []
    with torch.no_grad():
        for row, window in enumerate(batch.windows):
            frames = to_frames(encoder.decode(absolute[row][None]))[0].numpy()
            images = [to_frames(encoder.decode(one[None, :, None]))[0, 0].numpy() for one in references[row]]
            clip = clips.find(window.key)
            rows.append(
                {
                    "title": f"{window.key}, from latent frame {window.start}" + _window_title(window),
                    "video": _video(frames, _mixed_audio(source, clip, window)),
                    "voices": [
                        {"name": name, "audio": _wav(voice), "noisy": window.noisy[role]}
                        for role, (name, voice) in enumerate(_voices(source, clip, window).items())
                    ],
                    "caption": clip.caption,
                    "references": [_png(image) for image in images],
                    "weights": _png(_heat_map(weights[row, 0, 0])),
                    "states": _runs(clip, window),
                }
            )
    return rows


def _window_title(window: Window) -> str:
    return "" if window.corner is None else f", crop at row {window.corner[0]}, column {window.corner[1]}"


def _voices(source: ClipBatches, clip: Clip, window: Window) -> dict[str, Tensor]:
    """Return the audio samples of each voice that the model gets, aligned with the window's frames."""
    span = slice(window.start * SAMPLES_PER_LATENT, (window.start + window.latents - 1) * SAMPLES_PER_LATENT)
    return {
        name: source.voices(clip, window.noisy[role])[role, span]
        for role, name in enumerate(("speak", "listen"))
        if name in source.sampling.voices
    }


def _mixed_audio(source: ClipBatches, clip: Clip, window: Window) -> NDArray[np.int16]:
    mixed = torch.stack(list(_voices(source, clip, window).values())).sum(0)
    return _pcm(mixed)


def _pcm(voice: Tensor) -> NDArray[np.int16]:
    return (voice.clamp(-1, 1) * 32767).to(torch.int16).numpy()


def _runs(clip: Clip, window: Window) -> list[tuple[str, float]]:
    """Return (state, percentage of the window's frames) of each run."""
    first, count = window.start * FRAMES_PER_LATENT, (window.latents - 1) * FRAMES_PER_LATENT
    track = clip.states[first : first + count]
    names = {code: name for name, code in STATES.items()}
    edges = [0, *(np.flatnonzero(np.diff(track)) + 1).tolist(), len(track)]
    return [(names[int(track[a])], 100 * (b - a) / count) for a, b in zip(edges, edges[1:], strict=False) if b > a]


def _video(frames: NDArray[np.uint8], audio: NDArray[np.int16]) -> str:
    """Encode the frames after the first, with their audio, as MP4 in base64."""
    with tempfile.TemporaryDirectory(prefix="lpm-preview-") as place:
        path = Path(place) / "window.mp4"
        with Mp4Writer(path, height_px=frames.shape[1], width_px=frames.shape[2]) as writer:
            writer.write(frames[1:], audio)
        return base64.b64encode(path.read_bytes()).decode()


def _wav(voice: Tensor) -> str:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, AUDIO_RATE, 0, "NONE", ""))
        file.writeframes(_pcm(voice).tobytes())
    return base64.b64encode(target.getvalue()).decode()


def _heat_map(weight: Tensor) -> NDArray[np.uint8]:
    """Return a heat map of loss weights as RGB, bright where an error counts most."""
    level = (255 * weight / weight.max()).byte().numpy()
    heat: NDArray[np.uint8] = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[:, :, ::-1]
    return heat


def _png(image: NDArray[np.uint8]) -> str:
    large = cv2.resize(image, (SHOWN_PX, SHOWN_PX), interpolation=cv2.INTER_NEAREST)
    return base64.b64encode(cv2.imencode(".png", large[:, :, ::-1])[1].tobytes()).decode()
