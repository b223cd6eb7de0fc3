"""StreamingSampler long tuning: a roll-out that goes on from step to step over the same cache (LongLive, arXiv 2509.22622).

Each step rolls one clip on. Its voices are another clip's than those of the step before, and by chance something
changes at one of its chunk borders: the roles, both voices once more, or the text.

B rows, n latent frames of a step, P latent frames of audio context, H of remembered voices.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lpm_model.cache import KVCache
from lpm_model.dit import Conditions
from lpm_model.rollout import chunk_conditions
from lpm_model.training.distill.config import Distillation
from lpm_model.training.distill.roles import ModelRoles, Role
from lpm_model.training.distill.rollout_samplers import (
    Sample,
    clip_conditions,
    draw_exit_index,
    rollout_noise,
    start_cache,
)
from lpm_model.training.distill.trajectories import Trajectories
from lpm_model.training.engine.data import Batch

Kind = Literal["roles", "clip", "text"]
KINDS: tuple[Kind, ...] = ("roles", "clip", "text")
"""What can change."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of what steers."""

    at: int
    """Latent frames of the step before it: a chunk border."""
    kind: Kind


@dataclass(slots=True)
class RolloutState:
    """A roll-out under way."""

    cache: KVCache
    image: Tensor
    """[B, channels, 1, h, w]."""
    last: Tensor
    """[B, channels, 1, h, w] its last latent frame, relative to the image."""
    heard: Conditions
    """Voices [B, H, tokens, width] up to the last latent frame; text and references as they hold now."""
    made: int = 0
    """Latent frames made."""


class StreamingSampler:
    """The student on a roll-out that is kept between the steps, `per_roll_out` of them."""

    role: Role = "student"

    def __init__(self, roles: ModelRoles, settings: Distillation) -> None:
        self.roles, self.settings, self.online = roles, settings, roles.online
        self.new = (settings.clip_latents - 1) // self.online.chunk_latents * self.online.chunk_latents
        self.per_roll_out = -(-settings.long.latents // self.new)
        self.context = self.online.config.context_latents
        # Of the next chunk, of the known latent frame before it, and of a window that is encoded anew.
        self.remembered = max(self.context + 1, self.online.audio_history_latents)
        self.running: RolloutState | None = None

    def draw(self, shared: torch.Generator) -> Switch | None:
        """What changes in a step, and where."""
        chance, border, kind = torch.rand(3, generator=shared).tolist()
        if chance >= self.settings.long.switch_prob:
            return None
        chunk = self.online.chunk_latents
        return Switch(at=int(border * (self.new // chunk)) * chunk, kind=KINDS[int(kind * len(KINDS))])

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        assert isinstance(batch, Batch)
        with self.roles.activate(self.role):
            if self.running is None or self.running.made >= self.per_roll_out * self.new:
                self.running = self._start(batch)
            switch, exit_index = self.draw(shared), draw_exit_index(self.online, shared)
            heard = extend_audio(self.running.heard, batch.conditions, self.context + 1, self.new, switch)
            made = self._roll_on(self.running, heard, batch, switch, exit_index, train=train)
        text_changes = switch is not None and switch.kind == "text"
        if text_changes:
            heard = replace(heard, text=batch.conditions.text)
        clip = torch.cat([self.running.last, made], dim=2)
        if self.running.made:
            clip = self.online.codec.rebase(clip, self.running.image)
        conditions = clip_conditions(heard, self.context, self.remembered - 1 - self.context, 1 + self.new)
        self.running.heard = _voices(heard, lambda voice: voice[:, -self.remembered :])
        self.running.last, self.running.made = made[:, :, -1:].detach(), self.running.made + self.new
        return Sample(clip, conditions, first=1 + switch.at if switch is not None and text_changes else 1)

    def _start(self, batch: Batch) -> RolloutState:
        """A roll-out from a batch's image; before it nothing but the image's own context was heard."""
        image, given = batch.latents[:, :, :1], batch.conditions

        def before(voice: Tensor) -> Tensor:
            own = voice[:, : self.context + 1]
            return torch.cat([own[:, :1].expand(-1, self.remembered - own.shape[1], -1, -1), own], dim=1)

        return RolloutState(start_cache(self.online, image, given), image, image, _voices(given, before))

    def _roll_on(
        self,
        running: RolloutState,
        heard: Conditions,
        batch: Batch,
        switch: Switch | None,
        exit_index: int,
        *,
        train: bool,
    ) -> Tensor:
        """The next latent frames [B, channels, n, h, w], relative to the roll-out's image."""
        noise, chunk = rollout_noise(self.online, running.image, batch.generator), self.online.chunk_latents
        graph = max(0, self.new - (self.settings.gradient_latents or self.new)) // chunk * chunk
        at = switch.at if switch is not None and switch.kind == "text" else 0
        chunks: list[tuple[slice, Tensor]] = []
        for begin, end in zip((borders := sorted({0, at, graph, self.new})), borders[1:], strict=False):
            if switch is not None and switch.kind == "text" and begin == at:
                heard = replace(heard, text=batch.conditions.text)
                self._recompute(running.cache, heard, begin, batch.generator)
            local = chunk_conditions(heard, self.context, self.remembered - self.context, self.new)
            chunks += self.online.rollout(
                running.cache, local, end, noise, first=begin, exit_index=exit_index, train=train and begin >= graph
            )
        return torch.cat([clean for _, clean in chunks], dim=2)

    def _recompute(self, cache: KVCache, heard: Conditions, begin: int, generator: torch.Generator) -> None:
        """Where the model is to do so, encode the window anew under another text, as serving does."""
        if self.online.online.on_prompt_change != "recompute":
            return
        rows = range(cache.written.shape[0])
        window = self.online.audio_history_latents
        voices = _voices(heard, lambda voice: voice[:, self.remembered + begin - window :])
        self.online.recompute_windows(cache, voices, rows, [generator] * len(rows))


def extend_audio(heard: Conditions, given: Conditions, first: int, frames: int, switch: Switch | None) -> Conditions:
    """What was heard, and behind it the voices of `frames` latent frames of a batch, with a change of roles or clip.

    Args:
        heard: voices [B, H, tokens, width] so far, text, references.
        given: a batch's conditions.
        first: index in its voices.
        frames: latent frames.
        switch: a change of the text is not this function's.
    """
    own = {name: getattr(given, name)[:, first : first + frames] for name in ("speak", "listen")}
    if switch is not None and switch.kind != "text":
        then = {"speak": own["listen"], "listen": own["speak"]}
        if switch.kind == "clip":
            then = {name: voice.roll(1, dims=0) for name, voice in own.items()}
        own = {name: torch.cat([own[name][:, : switch.at], then[name][:, switch.at :]], dim=1) for name in own}
    on = {name: torch.cat([getattr(heard, name), voice], dim=1) for name, voice in own.items()}
    return replace(heard, speak=on["speak"], listen=on["listen"])


def _voices(conditions: Conditions, change: Callable[[Tensor], Tensor]) -> Conditions:
    """The same with both voices changed."""
    assert conditions.speak is not None
    assert conditions.listen is not None
    return replace(conditions, speak=change(conditions.speak), listen=change(conditions.listen))
