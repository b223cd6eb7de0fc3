"""Base LPM: offline, bidirectional sampling with guidance, window by window for any length.

B batch, F latent frames of a window, K known ones at its start, k latent frames to generate.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lpm_model import flow
from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.character import Character, CharacterModel, config_part, inference_device, read_base_config, to_frames
from lpm_model.checkpoint import load_weights, read_weights
from lpm_model.config import SAMPLES_PER_LATENT, ModelConfig
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.encoders.load import find_encoders
from lpm_model.execution import EAGER, Execution
from lpm_model.precision import native_dtype

SHIFT = 3.0
"""Shift of the sampling schedule towards high noise (flow.shift_sigma)."""


class BaseModel(CharacterModel):
    """The bidirectional model and its encoders.

    Args:
        config: shape.
        autoencoder: autoencoder of the latents.
        size_px: side of the frames.
        encoders: folder of the pretrained encoders, if the config names any.
        device: device of the transformer; on "meta" it uses no memory until weights are assigned.
        execution: how forward passes run.
    """

    def __init__(
        self,
        config: ModelConfig,
        autoencoder: VideoAutoencoder,
        size_px: int,
        encoders: Path | None = None,
        device: str = "cpu",
        execution: Execution = EAGER,
    ) -> None:
        super().__init__(config, autoencoder, size_px, encoders)
        with torch.device(device):
            self.dit = DiffusionTransformer(config, execution)


def guided_velocity(
    dit: DiffusionTransformer,
    noisy: Tensor,
    sigma: Tensor,
    conditions: Conditions,
    guidance: float,
    audio_guidance: float | None = None,
) -> Tensor:
    """Classifier-free guidance (https://arxiv.org/abs/2207.12598) over text and audio, jointly or separately.

    Separately it is v0 + g_text (v_text - v0) + g_audio (v_text_audio - v_text)
    (https://arxiv.org/abs/2211.09800, equation 3), which for equal scales is the joint form.

    Args:
        dit: the model.
        noisy: [B, channels, F, h, w].
        sigma: [B, F].
        conditions: conditions of the positive pass; the negative pass drops text and audio but not the identity.
        guidance: scale; 1 for both runs the positive pass alone.
        audio_guidance: scale of speak and listen audio, which takes a third pass; None = `guidance`.

    Returns:
        [B, channels, F, h, w].
    """
    positive: Tensor = dit(noisy, sigma, conditions)
    audio = guidance if audio_guidance is None else audio_guidance
    if guidance == audio == 1.0:
        return positive
    negative = dit(noisy, sigma, conditions.without("text", "speak", "listen"))
    if guidance == audio:
        return negative + guidance * (positive - negative)
    silent = dit(noisy, sigma, conditions.without("speak", "listen"))
    return negative + guidance * (silent - negative) + audio * (positive - silent)


@torch.no_grad()
def sample_window(
    dit: DiffusionTransformer,
    known: Tensor,
    frames: int,
    conditions: Conditions,
    *,
    steps: int,
    guidance: float,
    audio_guidance: float | None = None,
    shift: float = SHIFT,
    generator: torch.Generator | None = None,
    keep: Sequence[float] = (),
) -> tuple[Tensor, dict[float, Tensor]]:
    """Sample one window by Euler steps; its first latent frames are known.

    Args:
        dit: the model.
        known: [B, channels, K, h, w] clean latent frames at the start of the window.
        frames: F, the length of the window, known latent frames included.
        conditions: conditions of the whole window.
        steps: Euler steps.
        guidance: scale, see `guided_velocity`.
        audio_guidance: scale of the audio alone, see `guided_velocity`.
        shift: shift of the schedule, see flow.shift_sigma.
        generator: random generator of the initial noise.
        keep: noise levels at which to return the state (the nearest of the schedule).

    Returns:
        Clean latents [B, channels, F, h, w], and for each level of `keep` the state [B, channels, F, h, w] at it.
    """
    batch, channels, given, height, width = known.shape
    dtype = dit.patch.weight.dtype
    inputs = conditions.map(lambda value: value.to(dtype))
    fresh = torch.randn(batch, channels, frames - given, height, width, generator=generator)
    x = torch.cat([known, fresh.to(known.device)], dim=2)
    moving = torch.zeros(frames, device=known.device)
    moving[given:] = 1
    sigmas = flow.schedule(steps, shift)
    nearest = {int((sigmas - level).abs().argmin()): level for level in keep}
    states: dict[float, Tensor] = {}
    for index, (sigma, target) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if index in nearest:
            states[nearest[index]] = x.clone()
        level = (sigma * moving).expand(batch, -1)
        predicted = guided_velocity(dit, x.to(dtype), level, inputs, guidance, audio_guidance)
        x = flow.euler_step(x, predicted * moving[:, None, None], sigma, target)
    return x, states


def sample_latents(
    base: BaseModel,
    character: Character,
    speak: Tensor,
    listen: Tensor,
    text: Sequence[str] | None = None,
    *,
    steps: int = 12,
    guidance: float = 2.0,
    audio_guidance: float | None = None,
    seed: int = 0,
    window_latents: int = 13,
    overlap_latents: int = 3,
) -> Tensor:
    """Sample absolute latents [B, channels, 1 + k, h, w] for audio of 4000 k samples, in overlapping windows."""
    batch, total = speak.shape[0], 1 + speak.shape[1] // SAMPLES_PER_LATENT
    generator = torch.Generator().manual_seed(seed)
    own, partner = base.clip_features(speak), base.clip_features(listen)
    done = character.image.expand(batch, -1, -1, -1, -1).float()
    while done.shape[2] < total:
        start = max(0, done.shape[2] - overlap_latents) if done.shape[2] > 1 else 0
        frames = min(window_latents, total - start)
        span = slice(start, start + frames + base.config.context_latents)
        conditions = Conditions(
            text=base.text(text),
            speak=own[:, span],
            listen=partner[:, span],
            references=character.references.expand(batch, -1, -1, -1, -1),
            reference_positions=character.positions,
        )
        known = base.codec.encode(done[:, :, start:])
        window, _ = sample_window(
            base.dit, known, frames, conditions, steps=steps, guidance=guidance, audio_guidance=audio_guidance,
            generator=generator,
        )  # fmt: skip
        new = base.codec.decode(window[:, :, known.shape[2] :], known[:, :, :1])
        done = torch.cat([done, new], dim=2)
    return done


@torch.no_grad()
def sample_base(
    base: BaseModel,
    character: Character,
    speak: Tensor,
    listen: Tensor,
    text: Sequence[str] | None = None,
    *,
    steps: int = 12,
    guidance: float = 2.0,
    audio_guidance: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Generate video for audio offline.

    Args:
        base: the model.
        character: the person on screen.
        speak: [B, 4000 k] in [-1, 1], the character's own audio.
        listen: [B, 4000 k] in [-1, 1], the partner's audio.
        text: a prompt for each row.
        steps: Euler steps.
        guidance: scale over text and audio; 1 turns it off.
        audio_guidance: scale of the audio alone; None = `guidance`.
        seed: seed of the noise.

    Returns:
        uint8 [B, 4 k, H, W, 3]: the frames after the character image.
    """
    latents = sample_latents(
        base, character, speak, listen, text, steps=steps, guidance=guidance, audio_guidance=audio_guidance, seed=seed
    )
    return to_frames(base.autoencoder.decode(latents))[:, 1:]


def load_base(folder: Path, dtype: torch.dtype | None = None, device: str | None = None) -> BaseModel:
    """Load a Base LPM folder for inference.

    Args:
        folder: written by train.
        dtype: data type of the weights; None = the device's native type.
        device: None selects a GPU if there is one.

    Raises:
        ValueError: the folder holds no model, or weights that do not fit.
    """
    config = read_base_config(folder)
    base = BaseModel(
        config_part(ModelConfig, config, "model", folder), load_autoencoder(folder / "autoencoder"), config["size_px"],
        find_encoders(folder), device="meta",
    )  # fmt: skip
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: run `lpm train` again")
    load_weights(base.dit, read_weights(weights), weights)
    place = inference_device(device)
    base.dit.to(dtype if dtype is not None else native_dtype(place))
    return base.to(place).eval().requires_grad_(False)
