"""Streaming long tuning: a rollout that continues from step to step over one cache (LongLive, arXiv 2509.22622).

Each step extends the rollout by one clip, with audio from a new clip. At a random chunk boundary the conditions may
change: the speaking turn, both voices, or the text.

B rows, n latent frames of a step, P latent frames of audio context, H of audio history.
"""

import itertools
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

Kind = Literal["turn", "clip", "text"]
KINDS: tuple[Kind, ...] = ("turn", "clip", "text")
"""Changes: swap own and partner's audio; replace both with another clip's; replace the text."""


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of the conditions within a step."""

    at: int
    """Latent frames of the step before the change, at a chunk boundary."""
    kind: Kind


@dataclass(slots=True)
class RolloutState:
    """A rollout in progress."""

    cache: KVCache
    image: Tensor
    """[B, channels, 1, h, w]."""
    last: Tensor
    """[B, channels, 1, h, w] its last latent frame, a residual to the image."""
    conditions: Conditions
    """Audio [B, H, tokens, width] up to the last latent frame; the current text and references."""
    latents: int = 0
    """Number of latent frames generated so far."""


class StreamingSampler:
    """The student on a rollout that continues for `steps_per_rollout` steps."""

    role: Role = "student"

    def __init__(self, roles: ModelRoles, settings: Distillation) -> None:
        self.roles, self.settings, self.online = roles, settings, roles.online
        self.new = (settings.clip_latents - 1) // self.online.chunk_latents * self.online.chunk_latents
        self.steps_per_rollout = -(-settings.long.latents // self.new)
        self.context = self.online.config.context_latents
        # Covers the next chunk, the latent frame before it, and a re-encoded window.
        self.history = max(self.context + 1, self.online.audio_history_latents)
        self.rollout: RolloutState | None = None

    def draw(self, shared: torch.Generator) -> Switch | None:
        """Draw the change of conditions in a step; None for no change."""
        draw, boundary, kind = torch.rand(3, generator=shared).tolist()
        if draw >= self.settings.long.switch_prob:
            return None
        chunk = self.online.chunk_latents
        return Switch(at=int(boundary * (self.new // chunk)) * chunk, kind=KINDS[int(kind * len(KINDS))])

    def sample(self, batch: Batch | Trajectories, shared: torch.Generator, *, train: bool) -> Sample:
        assert isinstance(batch, Batch)
        with self.roles.activate(self.role):
            if self.rollout is None or self.rollout.latents >= self.steps_per_rollout * self.new:
                self.rollout = self._start(batch)
            switch, exit_index = self.draw(shared), draw_exit_index(self.online, shared)
            conditions = extend_audio(self.rollout.conditions, batch.conditions, self.context + 1, self.new, switch)
            generated = self._extend(self.rollout, conditions, batch, switch, exit_index, train=train)
        text_changes = switch is not None and switch.kind == "text"
        if text_changes:
            conditions = replace(conditions, text=batch.conditions.text)
        clip = torch.cat([self.rollout.last, generated], dim=2)
        if self.rollout.latents:
            clip = self.online.codec.rebase(clip, self.rollout.image)
        own = clip_conditions(conditions, self.context, self.history - 1 - self.context, 1 + self.new)
        self.rollout.conditions = _map_audio(conditions, lambda voice: voice[:, -self.history :])
        self.rollout.last, self.rollout.latents = generated[:, :, -1:].detach(), self.rollout.latents + self.new
        return Sample(clip, own, first=1 + switch.at if switch is not None and text_changes else 1)

    def _start(self, batch: Batch) -> RolloutState:
        """Start a rollout from a batch's image; the audio history repeats the first frame of its context."""
        image, given = batch.latents[:, :, :1], batch.conditions

        def before(voice: Tensor) -> Tensor:
            own = voice[:, : self.context + 1]
            return torch.cat([own[:, :1].expand(-1, self.history - own.shape[1], -1, -1), own], dim=1)

        return RolloutState(start_cache(self.online, image, given), image, image, _map_audio(given, before))

    def _extend(
        self,
        rollout: RolloutState,
        conditions: Conditions,
        batch: Batch,
        switch: Switch | None,
        exit_index: int,
        *,
        train: bool,
    ) -> Tensor:
        """Generate the next latent frames [B, channels, n, h, w], residuals to the rollout's image."""
        noise, chunk = rollout_noise(self.online, rollout.image, batch.generator), self.online.chunk_latents
        gradient_start = max(0, self.new - (self.settings.gradient_latents or self.new)) // chunk * chunk
        at = switch.at if switch is not None and switch.kind == "text" else 0
        chunks: list[tuple[slice, Tensor]] = []
        for begin, end in itertools.pairwise(sorted({0, at, gradient_start, self.new})):
            if switch is not None and switch.kind == "text" and begin == at:
                conditions = replace(conditions, text=batch.conditions.text)
                self._recompute_window(rollout.cache, conditions, begin, batch.generator)
            local = chunk_conditions(conditions, self.context, self.history - self.context, self.new)
            chunks += self.online.rollout(
                rollout.cache, local, end, noise, first=begin, exit_index=exit_index,
                train=train and begin >= gradient_start,
            )  # fmt: skip
        return torch.cat([clean for _, clean in chunks], dim=2)

    def _recompute_window(self, cache: KVCache, conditions: Conditions, begin: int, generator: torch.Generator) -> None:
        """If the model recomputes on a prompt change, re-encode the window under the new text, as serving does."""
        if self.online.online.on_prompt_change != "recompute":
            return
        rows = range(cache.written.shape[0])
        window = self.online.audio_history_latents
        audio = _map_audio(conditions, lambda voice: voice[:, self.history + begin - window :])
        self.online.recompute_windows(cache, audio, rows, [generator] * len(rows))


def extend_audio(history: Conditions, given: Conditions, first: int, frames: int, switch: Switch | None) -> Conditions:
    """Append the audio of `frames` latent frames of a batch to the history, with a change of turn or clip.

    Args:
        history: audio [B, H, tokens, width] so far, text, references.
        given: the batch's conditions.
        first: index into its audio.
        frames: latent frames to append.
        switch: the change; one of the text has no effect here.

    Returns:
        The history with audio [B, H + frames, tokens, width].
    """
    own = {name: getattr(given, name)[:, first : first + frames] for name in ("speak", "listen")}
    if switch is not None and switch.kind != "text":
        then = {"speak": own["listen"], "listen": own["speak"]}
        if switch.kind == "clip":
            then = {name: voice.roll(1, dims=0) for name, voice in own.items()}
        own = {name: torch.cat([own[name][:, : switch.at], then[name][:, switch.at :]], dim=1) for name in own}
    extended = {name: torch.cat([getattr(history, name), voice], dim=1) for name, voice in own.items()}
    return replace(history, speak=extended["speak"], listen=extended["listen"])


def _map_audio(conditions: Conditions, function: Callable[[Tensor], Tensor]) -> Conditions:
    """Apply a function to both audio branches."""
    assert conditions.speak is not None
    assert conditions.listen is not None
    return replace(conditions, speak=function(conditions.speak), listen=function(conditions.listen))
