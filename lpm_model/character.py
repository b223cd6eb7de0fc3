"""What Base and Online LPM share: the character on screen, its encoders and its latent codec.

B batch, F latent frames, R references, n audio tokens a latent frame.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.config import ABSENT, REFERENCE_KINDS, SAMPLES_PER_LATENT, ModelConfig, from_mapping
from lpm_model.encoders.load import build_audio_encoder, build_text_encoder
from lpm_model.latent_codec import LatentCodec

T = TypeVar("T")

Image = NDArray[np.uint8]
"""[H, W, 3] RGB."""


@dataclass(frozen=True, slots=True)
class Character:
    """The character on screen."""

    image: Tensor
    """[1, channels, 1, h, w] latent of the reference image, the first frame; [B, ...] for one in each row."""
    references: Tensor
    """[1, R, channels, h, w] latents of the references, or [B, ...]."""
    positions: Tensor
    """[R] temporal positions of the references, or [B, R]: ABSENT where a row has fewer."""

    def rows(self, batch: int) -> "Character":
        """Return the same character in every row of a batch."""
        image, references = (x.expand(batch, *x.shape[1:]).contiguous() for x in (self.image, self.references))
        return Character(image, references, self.positions.expand(batch, -1).contiguous())

    def with_rows(self, mask: Tensor, other: "Character") -> "Character":
        """Return the same with the rows where mask [B] is True from another batch."""
        most = max(self.references.shape[1], other.references.shape[1])
        own, new = self.padded(most), other.padded(most)
        return Character(
            image=torch.where(mask[:, None, None, None, None], new.image, own.image),
            references=torch.where(mask[:, None, None, None, None], new.references, own.references),
            positions=torch.where(mask[:, None], new.positions, own.positions),
        )

    def padded(self, references: int) -> "Character":
        """Pad with absent references to the given number; positions must be per row, [B, R]."""
        missing = references - self.references.shape[1]
        return Character(
            image=self.image,
            references=functional.pad(self.references, (0, 0) * 3 + (0, missing)),
            positions=functional.pad(self.positions, (0, missing), value=ABSENT),
        )


def join_characters(characters: Sequence[Character]) -> Character:
    """Join characters into a batch; each may have a different number of references."""
    most = max(c.references.shape[1] for c in characters)
    rows = [c.rows(c.image.shape[0]).padded(most) for c in characters]
    return Character(
        image=torch.cat([c.image for c in rows]),
        references=torch.cat([c.references for c in rows]),
        positions=torch.cat([c.positions for c in rows]),
    )


def to_video(frames: NDArray[np.uint8]) -> Tensor:
    """Convert uint8 [T, H, W, 3] to float [1, 3, T, H, W] in [-1, 1]."""
    return rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> 1 c t h w").float() / 127.5 - 1


def to_frames(video: Tensor) -> Tensor:
    """Convert float [B, 3, T, H, W] in [-1, 1] to uint8 [B, T, H, W, 3]."""
    return rearrange(((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), "b c t h w -> b t h w c")


def reference_positions(kinds: Sequence[str]) -> Tensor:
    """Return the temporal positions [R] of references by kind: before latent 0, separated by type (paper section 3.3).

    Raises:
        ValueError: an unknown kind.
    """
    unknown = [kind for kind in kinds if kind not in REFERENCE_KINDS]
    if unknown:
        raise ValueError(f"unknown reference kind {unknown[0]!r}; choose from {', '.join(REFERENCE_KINDS)}")
    return torch.tensor([-REFERENCE_KINDS[kind] for kind in kinds], dtype=torch.long)


class CharacterModel(nn.Module):
    """Encoders around a Diffusion Transformer."""

    def __init__(
        self, config: ModelConfig, autoencoder: VideoAutoencoder, size_px: int, encoders: Path | None = None
    ) -> None:
        super().__init__()
        self.config, self.size_px = config, size_px
        self.autoencoder, self.codec = autoencoder, LatentCodec.from_config(config)
        self.audio_encoder = build_audio_encoder(config.audio, encoders)
        self.text_encoder = build_text_encoder(config, encoders)
        if config.audio_width not in (0, self.audio_encoder.width):
            raise ValueError(
                f"audio_width is {config.audio_width}, but {config.audio.encoder!r} gives {self.audio_encoder.width}: "
                "use that width"
            )
        if config.text_width != self.text_encoder.width:
            raise ValueError(
                f"text_width is {config.text_width}, but {config.text_encoder!r} gives {self.text_encoder.width}: "
                "use that width"
            )
        if config.latent_channels != autoencoder.latent_channels:
            raise ValueError(
                f"latent_channels is {config.latent_channels}, but the autoencoder gives "
                f"{autoencoder.latent_channels}: use that number"
            )

    @torch.no_grad()
    def character(
        self, image: Image, references: Sequence[Image] = (), kinds: Sequence[str] | None = None
    ) -> Character:
        """Encode a character.

        Args:
            image: the first frame, size_px square.
            references: more images of the same person, size_px square; without any the image is its own reference.
            kinds: one of config.REFERENCE_KINDS for each reference; "global" for the first, views after it by default.

        Raises:
            ValueError: an image of another size, an unknown kind or a number of kinds that does not fit.
        """
        images = list(references) or [image]
        names = list(kinds) if kinds is not None else list(REFERENCE_KINDS)[: len(images)]
        for each in (image, *images):
            if each.shape != (self.size_px, self.size_px, 3):
                raise ValueError(f"image of shape {each.shape}: this model needs {self.size_px}x{self.size_px} RGB")
        if len(names) != len(images):
            raise ValueError(f"{len(images)} references and {len(names)} kinds: give one kind for each reference")
        device = next(self.parameters()).device
        pixels = [to_video(each[None]).to(device) for each in (image, *images)]
        latents = [self.autoencoder.encode(video) for video in pixels]
        return Character(
            image=latents[0],
            references=torch.cat(latents[1:], dim=2).transpose(1, 2),
            positions=reference_positions(names),
        )

    def clip_features(self, audio: Tensor) -> Tensor:
        """Encode the audio of a clip that starts in silence, to the same features as a stream.

        Args:
            audio: [B, 4000 k] in [-1, 1]: the samples of latent frames 1 ... k.

        Returns:
            [B, context_latents + 1 + k, n, audio_width].
        """
        context = self.config.context_latents + 1
        around = (self.audio_encoder.past_samples, self.audio_encoder.lookahead_samples)
        silence = audio.new_zeros(audio.shape[0], SAMPLES_PER_LATENT)
        before = self.audio_encoder.encode(nn.functional.pad(silence, around)).expand(-1, context, -1, -1)
        return torch.cat([before, self.audio_encoder.encode(nn.functional.pad(audio, around))], dim=1)

    def text(self, texts: Sequence[str] | None) -> Tensor | None:
        """Encode prompts to [B, text_tokens, text_width]; None for None and for a batch of empty texts."""
        if texts is None or not any(texts):
            return None
        return self.text_encoder.encode(list(texts))


def read_model_config(folder: Path, remedy: str = "give the folder that train or distill wrote") -> dict[str, Any]:
    """Read config.json of a model folder.

    Raises:
        ValueError: it is missing; `remedy` ends the message.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a model folder: config.json is missing; {remedy}")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def config_part(cls: type[T], config: Mapping[str, Any], part: str, folder: Path) -> T:
    """Build one typed part (`model`, `online`, ...) of a model folder's config.

    Raises:
        ValueError: the part is missing or does not fit, as in a folder that another version wrote.
    """
    try:
        return from_mapping(cls, config.get(part, {}), where=f"{part}.")
    except ValueError as error:
        raise ValueError(
            f"{folder / 'config.json'} does not fit this version ({error}): train or distil the model again"
        ) from error


def read_base_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a Base LPM folder.

    Raises:
        ValueError: it is missing, or belongs to an Online LPM.
    """
    config = read_model_config(folder)
    if "online" in config:
        raise ValueError(f"{folder} is an Online LPM, which is causal: give the folder that train wrote")
    return config


def inference_device(name: str | None) -> torch.device:
    """Return the device of that name; None selects a GPU if there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
