"""The block loop of Online LPM: generates chunk after chunk over a history, in distillation and in serving.

B batch, c latent frames of a chunk, n audio tokens a latent frame, P latent frames of audio context.
The backbone denoises a chunk from noise over its own, noisy history; the refiner, if there is one, denoises it again
from a low noise level over its own, clean history (paper section 4.1).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from lpm_model import flow
from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.cache import KVCache
from lpm_model.character import Character, CharacterModel
from lpm_model.config import ModelConfig, OnlineConfig
from lpm_model.dit import Conditions, DiffusionTransformer


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a roll-out."""

    clean: Tensor
    """[B, channels, c, h, w]."""
    cached: Tensor
    """[B, channels, c, h, w]: what the history receives, usually `clean`."""
    written_levels: Collection[int] = ()
    """Levels of the history that already hold the chunk's keys."""


MakeChunk = Callable[[slice, Conditions], Chunk]
"""Generates the chunk of a span of latent frames under its conditions."""


def chunk_conditions(conditions: Conditions, context: int, first: int, frames: int) -> Conditions:
    """Cut the conditions of one chunk out of those of a clip.

    Args:
        conditions: conditions of the clip; audio starts P latent frames before its latent 0.
        context: P.
        first: latent frame of the clip at which the chunk begins.
        frames: latent frames of the chunk.

    Returns:
        Text as it is, audio [B, P + frames, n, audio_width], no references.
    """

    def cut(audio: Tensor | None) -> Tensor | None:
        return None if audio is None else audio[:, first : first + context + frames]

    return Conditions(text=conditions.text, speak=cut(conditions.speak), listen=cut(conditions.listen))


class NoiseSource(Protocol):
    """Draws standard normal chunks."""

    def draw(self) -> Tensor:
        """Return the next chunk [B, channels, c, h, w]."""
        ...


@dataclass(slots=True)
class Noise:
    """Draws chunks of one shape from generators."""

    shape: tuple[int, ...]
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """One for the whole chunk, or one for each row."""
    device: torch.device | None = None

    def draw(self) -> Tensor:
        """See `NoiseSource.draw`."""
        if self.generator is None or isinstance(self.generator, torch.Generator):
            drawn = torch.randn(self.shape, generator=self.generator)
        else:
            drawn = torch.cat([torch.randn(1, *self.shape[1:], generator=g) for g in self.generator])
        return drawn.to(self.device)


@dataclass(slots=True)
class DrawnNoise:
    """Chunks of noise that were drawn beforehand."""

    chunks: Iterator[Tensor]

    def draw(self) -> Tensor:
        """See `NoiseSource.draw`."""
        return next(self.chunks)


class BlockLoop(CharacterModel):
    """Backbone and refiner over their histories.

    Args:
        config: shape of both networks.
        online: streaming settings.
        autoencoder: autoencoder of the latents.
        size_px: side of the frames.
        encoders: folder of the pretrained encoders, if the config names any.
        refiner: whether to build the refiner; False leaves it to the caller.
        device: device of both networks; on "meta" they use no memory until weights are assigned.
    """

    def __init__(
        self,
        config: ModelConfig,
        online: OnlineConfig,
        autoencoder: VideoAutoencoder,
        size_px: int,
        encoders: Path | None = None,
        *,
        refiner: bool = True,
        device: str = "cpu",
    ) -> None:
        super().__init__(config, autoencoder, size_px, encoders)
        self.online = online
        with torch.device(device):
            self.backbone = DiffusionTransformer(config)
            self.refiner = DiffusionTransformer(config) if online.refiner_sigma and refiner else None

    @property
    def networks(self) -> dict[str, DiffusionTransformer]:
        """The trained parts by the stem of their weight files."""
        return {"model": self.backbone} | ({} if self.refiner is None else {"refiner": self.refiner})

    @property
    def chunk_latents(self) -> int:
        """Latent frames that one step generates."""
        return self.online.chunk_latents

    @property
    def dtype(self) -> torch.dtype:
        """Type of the backbone's weights."""
        return self.backbone.patch.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the backbone."""
        return self.backbone.patch.weight.device

    @property
    def audio_history_latents(self) -> int:
        """Latent frames of audio features that a state holds: a chunk's context, and the window if it is recomputed."""
        recomputes = self.online.on_prompt_change == "recompute"
        return self.config.context_latents + recomputes * self.online.window_latents

    @torch.no_grad()
    def prefill(self, character: Character, *, static: bool = False, refiner: bool = False) -> KVCache:
        """Create a cache prefilled with the characters of a batch (see `DiffusionTransformer.prefill`).

        Args:
            character: one in each row.
            static: allocate all buffers now and never again; not for passes with gradients.
            refiner: for the refiner instead of the backbone.
        """
        network, levels = self._network(refiner)
        like = network.patch.weight
        height, width = character.image.shape[3:]
        cache = KVCache.empty(
            self.config.layers, character.image.shape[0], height * width // 4, self.config.heads,
            self.config.head_width, self.online, like, len(levels),
        )  # fmt: skip
        conditions = Conditions(references=character.references, reference_positions=character.positions)
        with torch.compiler.set_stance("force_eager"):  # not worth compiling for one call per session
            network.prefill(cache, character.image.to(like.dtype), conditions.map(lambda value: value.to(like.dtype)))
        if self.online.on_prompt_change == "recompute":
            cache.latents = character.image.float().transpose(1, 2).repeat(1, cache.window, 1, 1, 1)
        if static:
            cache.allocate_static(self.chunk_latents)
        return cache

    def _network(self, refiner: bool) -> tuple[DiffusionTransformer, tuple[float, ...]]:
        """Backbone or refiner, and the noise levels of its history."""
        if not refiner:
            return self.backbone, self.online.backbone_levels
        if self.refiner is None:
            raise ValueError("this model has no refiner: set refiner_sigma above 0 and distil again")
        return self.refiner, self.online.refiner_levels

    def denoise(self, cache: KVCache, noisy: Tensor, index: int, conditions: Conditions) -> Tensor:
        """Run one forward pass of the backbone.

        Args:
            cache: history.
            noisy: [B, channels, c, h, w] at the noise level `index`.
            index: of the noise level in `backbone_sigmas`.
            conditions: of the chunk.

        Returns:
            The clean chunk [B, channels, c, h, w] that it predicts.
        """
        sigma = self.online.backbone_sigmas[index]
        return self.predict_clean(self.backbone, cache, noisy, sigma, conditions, level_index=index)

    def refine(self, cache: KVCache, coarse: Tensor, conditions: Conditions, noise: NoiseSource) -> Tensor:
        """Run one forward pass of the refiner from the backbone's chunk, re-noised; both [B, channels, c, h, w]."""
        network, _ = self._network(refiner=True)
        level = self.online.refiner_sigma
        noisy = flow.interpolate(coarse, noise.draw(), torch.tensor(level))
        return self.predict_clean(network, cache, noisy, level, conditions, level_index=0)

    def predict_clean(
        self, network: DiffusionTransformer, cache: KVCache, noisy: Tensor, level: float, conditions: Conditions,
        *, level_index: int,
    ) -> Tensor:  # fmt: skip
        """Predict the clean chunk; with a history per step, the pass's keys are written to that step's level.

        Args:
            network: backbone or refiner.
            cache: its history.
            noisy: [B, channels, c, h, w].
            level: noise level of `noisy`.
            conditions: of the chunk.
            level_index: level of the history to read and write, with a history per step.

        Returns:
            [B, channels, c, h, w].
        """
        per_step = self.online.history == "per_step"
        history = cache.level(level_index) if per_step else cache
        sigma = noisy.new_full((noisy.shape[0], noisy.shape[2]), level)
        predicted = network(
            noisy.to(network.patch.weight.dtype), sigma, conditions, history, record=history.write if per_step else None
        )
        return flow.clean_from_velocity(noisy, predicted, sigma[:, None, :, None, None])

    def generate(
        self,
        cache: KVCache,
        conditions: Conditions,
        noise: NoiseSource,
        *,
        exit_index: int | None = None,
        train: bool = False,
    ) -> Tensor:
        """Denoise one chunk from noise.

        Args:
            cache: history; its counter stays (see `append`).
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
    def append(
        self,
        cache: KVCache,
        clean: Tensor,
        conditions: Conditions,
        noise: NoiseSource,
        *,
        refiner: bool = False,
        written_levels: Collection[int] = (),
    ) -> None:
        """Append a finished chunk to the history, re-noised to the levels that the network is trained to see.

        Args:
            cache: the backbone's or the refiner's.
            clean: [B, channels, c, h, w].
            conditions: of this chunk.
            noise: draws standard normal chunks.
            refiner: the history is the refiner's.
            written_levels: levels that hold the chunk's keys from its denoising.
        """
        network, levels = self._network(refiner)
        clean = clean.detach()
        for index, level in enumerate(levels):
            if index not in written_levels:
                noisy = flow.interpolate(clean, noise.draw(), torch.tensor(level)) if level else clean
                sigma, history = clean.new_full((clean.shape[0], clean.shape[2]), level), cache.level(index)
                network(noisy.to(network.patch.weight.dtype), sigma, conditions, history, record=history.write)
        cache.store_latents(clean)
        cache.advance(clean.shape[2])

    def rollout(
        self,
        cache: KVCache,
        conditions: Conditions,
        latents: int,
        noise: NoiseSource,
        *,
        first: int = 0,
        exit_index: int | None = None,
        train: bool = False,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Generate chunk after chunk with the backbone and append each to its history. Serving requests one at a time.

        Args:
            cache: history; changed in place and detached, so that gradients never cross chunks.
            conditions: audio from P latent frames before latent 0 on, in the backbone's type.
            latents: latent frame at which the last chunk ends; a remainder shorter than a chunk is dropped.
            noise: draws standard normal chunks.
            first: latent frame at which the first chunk begins.
            exit_index: see `generate`.
            train: see `generate`.

        Yields:
            The span of a chunk's latent frames, and the chunk [B, channels, c, h, w].
        """
        count = len(self.online.backbone_sigmas) if exit_index is None else exit_index + 1
        written = range(count) if self.online.history == "per_step" else ()
        for span, given in self._chunks(conditions, first, latents):
            if not train:  # with gradients each pass needs its own autograd graph
                with torch.no_grad():
                    given = self.backbone.with_cross_kv(given, cache.written.shape[0], self.chunk_latents)
            clean = self.generate(cache, given, noise, exit_index=exit_index, train=train)
            self.append(cache, clean, given, noise, written_levels=written)
            yield span, clean

    def rollout_with(
        self,
        make: MakeChunk,
        cache: KVCache,
        conditions: Conditions,
        latents: int,
        noise: NoiseSource,
        *,
        first: int = 0,
        refiner: bool = False,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Generate chunk after chunk with the given function and append each to the history.

        Args:
            make: generates a chunk.
            cache: history, see `rollout`.
            conditions: see `rollout`.
            latents: see `rollout`.
            noise: draws standard normal chunks for the history.
            first: latent frame at which the first chunk begins.
            refiner: the history is the refiner's.

        Yields:
            The span of a chunk's latent frames, and the chunk [B, channels, c, h, w].
        """
        for span, given in self._chunks(conditions, first, latents):
            chunk = make(span, given)
            self.append(cache, chunk.cached, given, noise, refiner=refiner, written_levels=chunk.written_levels)
            yield span, chunk.clean

    def _chunks(self, conditions: Conditions, first: int, latents: int) -> Iterator[tuple[slice, Conditions]]:
        """Yield the spans of complete chunks from `first` to `latents`, and the conditions of each."""
        for begin in range(first, latents - self.chunk_latents + 1, self.chunk_latents):
            span = slice(begin, begin + self.chunk_latents)
            yield span, chunk_conditions(conditions, self.config.context_latents, begin, self.chunk_latents)

    @torch.no_grad()
    def recompute_windows(
        self,
        cache: KVCache,
        conditions: Conditions,
        rows: Sequence[int],
        generators: Sequence[torch.Generator],
        *,
        refiner: bool = False,
    ) -> None:
        """Re-encode the cached window of some rows under another text or audio (KV recache, arXiv 2509.22622).

        Args:
            cache: of a model whose `on_prompt_change` is recompute; the sink keeps its keys.
            conditions: from now on: the new text, and audio that begins context and window before the next chunk.
            rows: rows to re-encode.
            generators: of each row's noise.
            refiner: the history is the refiner's.
        """
        size, context = self.chunk_latents, self.config.context_latents
        for row in rows:
            fresh, latents, first = cache.window_of(row)
            own, begin, end = conditions.row(row), first, first + latents.shape[2]
            while begin < end:
                border = min(end, 1 + ((begin - 1) // size + 1) * size)  # chunks begin at latent 1
                piece = latents[:, :, begin - first : border - first]
                at = self.online.window_latents + begin - end
                noise = Noise(tuple(piece.shape), generators[row], self.device)
                given = chunk_conditions(own, context, at, border - begin)
                self.append(fresh, piece, given, noise, refiner=refiner)
                begin = border
            if end > first:
                cache.replace_window(row, fresh, first)

    def refresh_reference(self, cache: KVCache, character: Character, clean: Tensor, *, refiner: bool = False) -> None:
        """Replace the first reference with the latest generated frame in the rows where that is due.

        Args:
            cache: the backbone's or the refiner's.
            character: of each row.
            clean: [B, channels, c, h, w] the chunk just appended.
            refiner: the history is the refiner's.
        """
        at, generated = self.online.reference_refresh_latents, cache.written - 1
        due = (generated >= at) & (generated - clean.shape[2] < at)
        if not at or not bool(due.any()):
            return
        latents = self.codec.decode(clean[:, :, -1:], character.image)
        image = self.autoencoder.decode(latents.to(self.autoencoder.decoder_dtype))
        references = character.references.clone()
        references[due, 0] = self.autoencoder.encode(image)[due, :, 0].to(references.dtype)
        fresh = self.prefill(Character(character.image, references, character.positions), refiner=refiner)
        cache.replace_references(due, fresh)
