"""The block loop of Online LPM: chunks made one after the other over a history. Distillation and serving both run it.

B batch, c latent frames of a chunk, n audio tokens a latent frame, P latent frames of audio context.
The backbone makes a chunk from noise over its own, noisy history; the refiner, where there is one, makes it again from
a low noise level over its own, clean history (paper section 4.1).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lpm_model import flow
from lpm_model.autoencoder.api import VideoAutoencoder
from lpm_model.cache import KVCache
from lpm_model.character import Character, CharacterModel
from lpm_model.config import ModelConfig, OnlineConfig
from lpm_model.dit import Conditions, DiffusionTransformer

Start = Callable[[slice], tuple[Tensor, int]]
"""Gives the noisy chunk of a span to begin from and the index of its noise level, where the chunk also ends."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a roll-out makes of a span."""

    clean: Tensor
    """[B, channels, c, h, w]."""
    kept: Tensor
    """What the history gets of it."""
    written: Collection[int] = ()
    """Planes of the history that hold its keys already."""


Make = Callable[[slice, Conditions], Chunk]
"""Makes the chunk of a span, which hears these conditions."""


def chunk_conditions(conditions: Conditions, context: int, first: int, frames: int) -> Conditions:
    """What one chunk of a clip hears: the voices of `frames` latent frames from `first` on, with their context."""

    def cut(voice: Tensor | None) -> Tensor | None:
        return None if voice is None else voice[:, first : first + context + frames]

    return Conditions(text=conditions.text, speak=cut(conditions.speak), listen=cut(conditions.listen))


@dataclass(slots=True)
class Noise:
    """Draws standard normal chunks of one shape."""

    shape: tuple[int, ...]
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    """One for the whole chunk, or one for each row."""
    device: torch.device | None = None

    def draw(self) -> Tensor:
        """The next chunk."""
        if self.generator is None or isinstance(self.generator, torch.Generator):
            drawn = torch.randn(self.shape, generator=self.generator)
        else:
            drawn = torch.cat([torch.randn(1, *self.shape[1:], generator=g) for g in self.generator])
        return drawn.to(self.device)


@dataclass(slots=True)
class Drawn:
    """Chunks of noise that were drawn before."""

    chunks: Iterator[Tensor]

    def draw(self) -> Tensor:
        """The next one."""
        return next(self.chunks)


class BlockLoop(CharacterModel):
    """Backbone and refiner over their histories.

    Args:
        config: shape of both.
        online: how they stream.
        autoencoder: of the latents.
        size_px: side of the picture.
        encoders: folder of the pretrained encoders, where the config names any.
        refiner: its shape is the backbone's; False leaves it to the caller.
        device: of both; on "meta" they take no memory until they are given weights.
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
        """Latent frames that one step makes."""
        return self.online.chunk_latents

    @property
    def dtype(self) -> torch.dtype:
        """Type of the backbone's weights."""
        return self.backbone.patch.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.patch.weight.device

    @property
    def kept_latents(self) -> int:
        """Latent frames of audio features that a state keeps: a chunk's context, and what a recomputation hears."""
        recomputes = self.online.on_prompt_change == "recompute"
        return self.config.context_latents + recomputes * self.online.window_latents

    @torch.no_grad()
    def prime(self, character: Character, *, static: bool = False, refiner: bool = False) -> KVCache:
        """A cache that holds the characters of a batch: references apart, the image as latent 0.

        Args:
            character: one in each row.
            static: make all buffers now and never again; not where gradients are taken.
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
        with torch.compiler.set_stance("force_eager"):  # a shape that comes once a session is not worth compiling
            network.prime(cache, character.image.to(like.dtype), conditions.map(lambda value: value.to(like.dtype)))
        if self.online.on_prompt_change == "recompute":
            cache.latents = character.image.float().transpose(1, 2).repeat(1, cache.window, 1, 1, 1)
        if static:
            cache.make_room(self.chunk_latents)
        return cache

    def _network(self, refiner: bool) -> tuple[DiffusionTransformer, tuple[float, ...]]:
        """Backbone or refiner, and the noise levels of its history."""
        if not refiner:
            return self.backbone, self.online.backbone_levels
        if self.refiner is None:
            raise ValueError("this model has no refiner: set refiner_sigma above 0 and distil again")
        return self.refiner, self.online.refiner_levels

    def denoise(self, cache: KVCache, noisy: Tensor, index: int, conditions: Conditions) -> Tensor:
        """One forward of the backbone at its noise level `index`: the clean chunk [B, channels, c, h, w] it sees."""
        return self.see(self.backbone, cache, noisy, self.online.backbone_sigmas[index], conditions, plane=index)

    def refine(self, cache: KVCache, coarse: Tensor, conditions: Conditions, noise: "Noise | Drawn") -> Tensor:
        """One forward of the refiner from the backbone's chunk, re-noised: [B, channels, c, h, w]."""
        network, _ = self._network(refiner=True)
        level = self.online.refiner_sigma
        noisy = flow.interpolate(coarse, noise.draw(), torch.tensor(level))
        return self.see(network, cache, noisy, level, conditions, plane=0)

    def see(
        self, network: DiffusionTransformer, cache: KVCache, noisy: Tensor, level: float, conditions: Conditions,
        *, plane: int,
    ) -> Tensor:  # fmt: skip
        """The clean chunk that a network sees; with a history of steps, its keys go into that step's plane."""
        steps = self.online.history == "per_step"
        history = cache.plane(plane) if steps else cache
        sigma = noisy.new_full((noisy.shape[0], noisy.shape[2]), level)
        predicted = network(
            noisy.to(network.patch.weight.dtype), sigma, conditions, history, record=history.write if steps else None
        )
        return flow.clean_from_velocity(noisy, predicted, sigma[:, None, :, None, None])

    def generate(
        self,
        cache: KVCache,
        conditions: Conditions,
        noise: "Noise | Drawn",
        *,
        start: tuple[Tensor, int] | None = None,
        exit_index: int | None = None,
        train: bool = False,
    ) -> Tensor:
        """Denoise one chunk from noise.

        Args:
            cache: history; its counter stands still (see `remember`).
            conditions: of this chunk, in the backbone's type.
            noise: draws standard normal chunks.
            start: a noisy chunk and the index of its noise level to begin from; None begins from noise.
            exit_index: stop after this noise level (self-forcing's random exit); None runs them all.
            train: keep gradients, of the last forward only (https://arxiv.org/abs/2506.08009).

        Returns:
            The clean chunk [B, channels, c, h, w].
        """
        sigmas = self.online.backbone_sigmas
        last = len(sigmas) - 1 if exit_index is None else exit_index
        noisy, first = (noise.draw(), 0) if start is None else start
        for index in range(first, last + 1):
            with torch.set_grad_enabled(train and index == last):
                clean = self.denoise(cache, noisy, index, conditions)
            if index < last:
                noisy = flow.interpolate(clean.detach(), noise.draw(), torch.tensor(sigmas[index + 1]))
        return clean

    @torch.no_grad()
    def remember(
        self,
        cache: KVCache,
        clean: Tensor,
        conditions: Conditions,
        noise: "Noise | Drawn",
        *,
        refiner: bool = False,
        written: Collection[int] = (),
    ) -> None:
        """Put a finished chunk into the history, re-noised as the network is used to see it.

        Args:
            cache: the backbone's or the refiner's.
            clean: [B, channels, c, h, w].
            conditions: of this chunk.
            noise: draws standard normal chunks.
            refiner: whose history it is.
            written: planes that hold the chunk's keys from its denoising.
        """
        network, levels = self._network(refiner)
        clean = clean.detach()
        for index, level in enumerate(levels):
            if index not in written:
                seen = flow.interpolate(clean, noise.draw(), torch.tensor(level)) if level else clean
                sigma, plane = clean.new_full((clean.shape[0], clean.shape[2]), level), cache.plane(index)
                network(seen.to(network.patch.weight.dtype), sigma, conditions, plane, record=plane.write)
        cache.keep(clean)
        cache.advance(clean.shape[2])

    def rollout(
        self,
        cache: KVCache,
        conditions: Conditions,
        latents: int,
        noise: "Noise | Drawn",
        *,
        first: int = 0,
        start: Start | None = None,
        exit_index: int | None = None,
        train: bool = False,
        make: Make | None = None,
        refiner: bool = False,
    ) -> Iterator[tuple[slice, Tensor]]:
        """The block loop: each chunk is made over the history and then put into it. Serving takes one chunk at a time.

        Args:
            cache: history; changed in place and never part of a graph, so that a chunk's gradients stay its own.
            conditions: voices from P latent frames before latent 0 on, in the backbone's type.
            latents: where the last chunk ends; what does not fill a chunk is left out.
            noise: draws standard normal chunks.
            first: latent frame at which the first chunk begins.
            start: see `Start`; None begins each chunk from noise.
            exit_index: see `generate`.
            train: see `generate`.
            make: makes the chunks instead of `generate`; then the three before are not read.
            refiner: the history is the refiner's.

        Yields:
            The span of a chunk's latent frames, and the chunk [B, channels, c, h, w].
        """
        for begin in range(first, latents - self.chunk_latents + 1, self.chunk_latents):
            span = slice(begin, begin + self.chunk_latents)
            heard = chunk_conditions(conditions, self.config.context_latents, begin, self.chunk_latents)
            if make is not None:
                chunk = make(span, heard)
            else:
                if not train:  # gradients want a graph of their own in each pass
                    with torch.no_grad():
                        heard = self.backbone.hear(heard, cache.written.shape[0], self.chunk_latents)
                given = None if start is None else start(span)
                last = exit_index if given is None else given[1]
                clean = self.generate(cache, heard, noise, start=given, exit_index=last, train=train)
                end = len(self.online.backbone_sigmas) if last is None else last + 1
                denoised = range(0 if given is None else given[1], end) if self.online.history == "per_step" else ()
                chunk = Chunk(clean, clean, denoised)
            self.remember(cache, chunk.kept, heard, noise, refiner=refiner, written=chunk.written)
            yield span, chunk.clean

    @torch.no_grad()
    def recompute(
        self,
        cache: KVCache,
        heard: Conditions,
        rows: Sequence[int],
        generators: Sequence[torch.Generator],
        *,
        refiner: bool = False,
    ) -> None:
        """Encode the window of some rows anew, under another text or other voices (arXiv 2509.22622: KV recache).

        Args:
            cache: of a model whose `on_prompt_change` is recompute; the sink stays as it was made.
            heard: what holds from now on: the new text, and voices that begin context and window before the next chunk.
            rows: that are to be encoded anew.
            generators: of each row's noise.
            refiner: whose history it is.
        """
        size, context = self.chunk_latents, self.config.context_latents
        for row in rows:
            fresh, latents, first = cache.recall(row)
            own, begin, end = heard.row(row), first, first + latents.shape[2]
            while begin < end:
                border = min(end, 1 + ((begin - 1) // size + 1) * size)  # chunks begin at latent 1
                piece = latents[:, :, begin - first : border - first]
                at = self.online.window_latents + begin - end
                noise = Noise(tuple(piece.shape), generators[row], self.device)
                given = chunk_conditions(own, context, at, border - begin)
                self.remember(fresh, piece, given, noise, refiner=refiner)
                begin = border
            if end > first:
                cache.put_back(row, fresh, first)

    def refresh(self, cache: KVCache, character: Character, clean: Tensor, *, refiner: bool = False) -> None:
        """Where it is due, put the picture that was just made in the place of the first reference."""
        at, made = self.online.reference_refresh_latents, cache.written - 1
        due = (made >= at) & (made - clean.shape[2] < at)
        if not at or not bool(due.any()):
            return
        latents = self.codec.decode(clean[:, :, -1:], character.image)
        picture = self.autoencoder.decode(latents.to(self.autoencoder.decoder_type))
        references = character.references.clone()
        references[due, 0] = self.autoencoder.encode(picture)[due, :, 0].to(references.dtype)
        fresh = self.prime(Character(character.image, references, character.positions), refiner=refiner)
        cache.take_references(due, fresh)
