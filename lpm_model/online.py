"""Online LPM: the causal, streaming generator. The one block loop that distillation and serving both run.

B batch, c latent frames of a chunk, n audio tokens a latent frame, P latent frames of audio context.
A call is endless: constant memory (static caches) and bounded positions (lpm_model.cache).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpm_model import flow
from lpm_model.anchor import from_anchor
from lpm_model.autoencoder import DecoderState, VideoAutoencoder, load_autoencoder
from lpm_model.cache import KVCache
from lpm_model.character import Character, CharacterModel, inference_type, read_model_config, to_frames
from lpm_model.checkpoint import load_weights, read_weights
from lpm_model.config import FRAMES_PER_LATENT, SAMPLES_PER_LATENT, ModelConfig, OnlineConfig, from_mapping
from lpm_model.dit import Conditions, DiffusionTransformer
from lpm_model.encoders import encoders_of


@dataclass(slots=True)
class OnlineState:
    """Everything a session is: history, audio context, decoder features, randomness."""

    cache: KVCache
    speak: Tensor
    """[B, P, n, audio_width] features of the latent frames before the chunk."""
    listen: Tensor
    """The same for the other's voice."""
    speak_tail: Tensor
    """[B, past_samples] samples before the chunk."""
    listen_tail: Tensor
    """The same for the other's voice."""
    decoder: DecoderState
    generator: torch.Generator
    anchor: Tensor
    """[B, channels, 1, h, w] latents of the character images."""

    @property
    def position(self) -> Tensor:
        """[B] latent frames so far, the character image included."""
        return self.cache.written

    @property
    def nbytes(self) -> int:
        """Bytes held by the history."""
        return self.cache.nbytes


class OnlineModel(CharacterModel):
    """Backbone and encoders of a live character."""

    def __init__(
        self,
        config: ModelConfig,
        online: OnlineConfig,
        autoencoder: VideoAutoencoder,
        size_px: int,
        encoders: Path | None = None,
    ) -> None:
        super().__init__(config, autoencoder, size_px, encoders)
        self.online = online
        self.backbone = DiffusionTransformer(config)

    @property
    def chunk_latents(self) -> int:
        """Latent frames that one step makes."""
        return self.online.chunk_latents

    @property
    def chunk_frames(self) -> int:
        """Video frames that one step makes."""
        return self.online.chunk_latents * FRAMES_PER_LATENT

    @property
    def chunk_samples(self) -> int:
        """Audio samples that one step consumes for each role."""
        return self.online.chunk_latents * SAMPLES_PER_LATENT

    @property
    def lookahead_samples(self) -> int:
        """Audio samples after the chunk that a step also wants to see."""
        return self.audio_encoder.lookahead_samples

    @property
    def dtype(self) -> torch.dtype:
        """Type of the backbone's weights."""
        return self.backbone.patch.weight.dtype

    def init_state(self, character: Character, batch: int = 1, seed: int = 0) -> OnlineState:
        """The state of `batch` sessions with one character, before their first chunk."""
        rows = Character(
            image=character.image.expand(batch, -1, -1, -1, -1),
            references=character.references.expand(batch, -1, -1, -1, -1),
            positions=character.positions,
        )
        cache = self.prime(rows)
        features = self.clip_features(torch.zeros(batch, SAMPLES_PER_LATENT))[:, : self.config.context_latents]
        tail = torch.zeros(batch, self.audio_encoder.past_samples)
        with torch.no_grad():
            _, decoder = self.autoencoder.decode_step(
                rows.image.to(self.autoencoder.decoder_type), self.autoencoder.init_decode(batch)
            )
        return OnlineState(
            cache=cache, speak=features, listen=features, speak_tail=tail, listen_tail=tail, decoder=decoder,
            generator=torch.Generator().manual_seed(seed), anchor=rows.image,
        )  # fmt: skip

    @torch.no_grad()
    def prime(self, character: Character) -> KVCache:
        """A cache that holds the characters of a batch: references apart, the image as latent 0."""
        height, width = character.image.shape[3:]
        cache = KVCache.empty(
            self.config.layers, character.image.shape[0], height * width // 4, self.config.heads,
            self.config.head_width, self.online, self.backbone.patch.weight,
        )  # fmt: skip
        conditions = Conditions(references=character.references, reference_positions=character.positions)
        self.backbone.prime(cache, character.image.to(self.dtype), conditions.map(lambda value: value.to(self.dtype)))
        return cache

    def denoise(self, cache: KVCache, noisy: Tensor, index: int, conditions: Conditions) -> Tensor:
        """One forward of the backbone at its noise level `index`: the clean chunk [B, channels, c, h, w] it sees."""
        sigma = noisy.new_full((noisy.shape[0], noisy.shape[2]), self.online.backbone_sigmas[index])
        predicted = self.backbone(noisy.to(self.dtype), sigma, conditions, cache)
        return flow.clean_from_velocity(noisy, predicted, sigma[:, None, :, None, None])

    def generate(
        self,
        cache: KVCache,
        conditions: Conditions,
        noise: "Noise",
        *,
        exit_index: int | None = None,
        train: bool = False,
    ) -> Tensor:
        """Denoise one chunk from noise.

        Args:
            cache: history; not changed (see `remember`).
            conditions: of this chunk, in the backbone's type.
            noise: draws standard normal chunks.
            exit_index: stop after this noise level (self-forcing's random exit); None runs them all.
            train: keep gradients, of the last forward only (https://arxiv.org/abs/2506.08009).

        Returns:
            The clean chunk [B, channels, c, h, w].
        """
        sigmas = self.online.backbone_sigmas
        last = len(sigmas) - 1 if exit_index is None else exit_index
        noisy = noise.draw()
        for index in range(last + 1):
            with torch.set_grad_enabled(train and index == last):
                clean = self.denoise(cache, noisy, index, conditions)
            if index < last:
                noisy = flow.interpolate(clean.detach(), noise.draw(), torch.tensor(sigmas[index + 1]))
        return clean

    @torch.no_grad()
    def remember(self, cache: KVCache, clean: Tensor, conditions: Conditions, noise: "Noise") -> None:
        """Put a finished chunk into the history, re-noised as the backbone is used to see it."""
        level = self.online.history_sigma
        seen = flow.interpolate(clean.detach(), noise.draw(), torch.tensor(level)) if level else clean.detach()
        sigma = clean.new_full((clean.shape[0], clean.shape[2]), level)
        self.backbone(seen.to(self.dtype), sigma, conditions, cache, record=cache.write)
        cache.advance(clean.shape[2])

    @torch.inference_mode()
    def step(
        self, state: OnlineState, speak: Tensor, listen: Tensor, text: Sequence[str] | None = None
    ) -> tuple[Tensor, OnlineState]:
        """Make the next chunk.

        Args:
            state: from `init_state` or the step before; its buffers are reused.
            speak: [B, chunk_samples + lookahead_samples] in [-1, 1], own voice from the chunk's first sample.
            listen: the same for the other's voice.
            text: a prompt for each row.

        Returns:
            uint8 frames [B, chunk_frames, H, W, 3] and the next state.

        Raises:
            ValueError: audio of another length.
        """
        want = self.chunk_samples + self.lookahead_samples
        for name, audio in (("speak", speak), ("listen", listen)):
            if audio.shape != (state.cache.written.shape[0], want):
                raise ValueError(f"{name} audio has shape {tuple(audio.shape)}; a step wants [batch, {want}] samples")
        heard_speak, speak_tail = self._hear(state.speak, state.speak_tail, speak)
        heard_listen, listen_tail = self._hear(state.listen, state.listen_tail, listen)
        heard = Conditions(text=self.text(text), speak=heard_speak, listen=heard_listen)
        conditions = heard.map(lambda value: value.to(self.dtype))
        shape = (speak.shape[0], self.config.latent_channels, self.chunk_latents, *state.anchor.shape[3:])
        noise = Noise(shape, state.generator)
        clean = self.generate(state.cache, conditions, noise)
        self.remember(state.cache, clean, conditions, noise)
        latents = from_anchor(clean, state.anchor, self.config.anchor_gain)
        video, decoder = self.autoencoder.decode_step(latents.to(self.autoencoder.decoder_type), state.decoder)
        context = self.config.context_latents
        following = OnlineState(
            cache=state.cache,
            speak=heard_speak[:, heard_speak.shape[1] - context :],
            listen=heard_listen[:, heard_listen.shape[1] - context :],
            speak_tail=speak_tail, listen_tail=listen_tail, decoder=decoder, generator=state.generator,
            anchor=state.anchor,
        )  # fmt: skip
        return to_frames(video), following

    def _hear(self, features: Tensor, tail: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Features of context and chunk [B, P + c, n, width], and the samples to keep for the next chunk."""
        window = torch.cat([tail, audio], dim=1)
        new = self.audio_encoder.encode(window)
        end = self.audio_encoder.past_samples + self.chunk_samples
        return torch.cat([features, new], dim=1), window[:, end - self.audio_encoder.past_samples : end]

    def reset(self, state: OnlineState, mask: Tensor, character: Character) -> None:
        """Start the rows where mask [B] is True again with a character; the other rows are left as they are.

        Raises:
            ValueError: its references are of other kinds than those of the rows that stay.
        """
        if not torch.equal(character.positions, state.cache.reference_positions):
            raise ValueError(
                "a reset row needs references of the same kinds as the other rows: give the same kinds, or a new state"
            )
        fresh = self.init_state(character, batch=mask.shape[0])
        state.cache.take(mask, fresh.cache)
        for name in ("speak", "listen", "speak_tail", "listen_tail", "anchor"):
            old, new = getattr(state, name), getattr(fresh, name)
            setattr(state, name, torch.where(mask.view(-1, *[1] * (old.dim() - 1)), new, old))
        pairs = zip(state.decoder.features, fresh.decoder.features, strict=True)
        state.decoder = DecoderState(
            features=tuple(torch.where(mask.view(-1, *[1] * (old.dim() - 1)), new, old) for old, new in pairs)
        )


@dataclass(slots=True)
class Noise:
    """Draws standard normal chunks of one shape."""

    shape: tuple[int, ...]
    generator: torch.Generator | None = None

    def draw(self) -> Tensor:
        """The next chunk."""
        return torch.randn(self.shape, generator=self.generator)


def load_online(folder: Path, dtype: torch.dtype | None = None) -> OnlineModel:
    """Load an Online LPM folder for inference.

    Args:
        folder: written by distill.
        dtype: of the weights; None takes what this CPU is fast with.

    Raises:
        ValueError: not a folder of an Online LPM, or weights that do not fit.
    """
    config = read_model_config(folder)
    if "online" not in config:
        raise ValueError(
            f"{folder} is not an Online LPM (its config.json has no 'online' part): run `lpm distill` on it"
        )
    autoencoder = load_autoencoder(folder / "autoencoder")
    model = OnlineModel(
        from_mapping(ModelConfig, config["model"]),
        from_mapping(OnlineConfig, config["online"]),
        autoencoder,
        config["size_px"],
        encoders_of(folder),
    )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: run `lpm distill` again")
    load_weights(model.backbone, read_weights(weights), weights)
    kind = dtype if dtype is not None else inference_type()
    model.backbone.to(kind)
    if kind != torch.float32:
        autoencoder.decode_in(kind)
    return model.eval().requires_grad_(False)
