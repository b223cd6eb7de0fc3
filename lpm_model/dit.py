"""The Diffusion Transformer: bidirectional over a clip, or causal over a chunk when a cache is given.

B batch, F latent frames, R reference images, h w latent grid, T tokens a latent frame (h w / 4), L = (F + R) T tokens,
N heads, D head width, C model width, n audio tokens a latent frame.

- patch 1 x 2 x 2, AdaLN with a timestep for each latent frame, 3-D RoPE, RMS-normed queries and keys
- references are appended as clean tokens with their own temporal offsets, no extra parameters (paper section 3.3)
- cross-attention: text in every block, speak audio in even blocks, listen audio in odd blocks, shared query,
  out = W_text A_text + W_audio A_audio, audio values start at zero (paper section 3.2)
- block layout and names of the rest follow Wan 2.1, so that its weights fit
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lpm_model.attention import attend, audio_windows, rope3d, rotate
from lpm_model.cache import CacheLayout, KVCache
from lpm_model.config import ABSENT, ModelConfig
from lpm_model.sequence_parallel import SequenceGroup


@dataclass(frozen=True, slots=True)
class Conditions:
    """What steers a generation; None where a branch is absent (a learned null stands in)."""

    text: Tensor | None = None
    """[B, text_tokens, text_width]; a row of zeros is an absent text."""
    speak: Tensor | None = None
    """[B, P + F, n, audio_width]: the character's own voice, P >= context_latents frames before the first."""
    listen: Tensor | None = None
    """[B, P + F, n, audio_width]: the other's voice."""
    references: Tensor | None = None
    """[B, R, channels, h, w]: latents of reference images."""
    reference_positions: Tensor | None = None
    """[R], or [B, R] where rows differ: negative temporal positions (config.REFERENCE_KINDS), or ABSENT."""
    heard: "tuple[Heard, ...] | None" = None
    """What text and voices come to in each block, where `DiffusionTransformer.hear` was asked beforehand."""

    def without(self, *names: str) -> "Conditions":
        """The same with some branches absent."""
        return replace(self, heard=None, **dict.fromkeys(names))

    def row(self, index: int) -> "Conditions":
        """What steers one row of a batch, whose references are in a cache."""
        return self.map(lambda value: value[index : index + 1])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """The same with every per-row tensor changed; reference_positions, which all rows share, stay."""
        names = ("text", "speak", "listen", "references")
        present = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, heard=None, **{name: change(value) for name, value in present.items()})


def timestep_embedding(sigma: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of 1000 sigma, cosines first as in Wan 2.1; sigma [...], result [..., width]."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device, dtype=torch.float32) / half)
    angles = 1000 * sigma.float()[..., None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def patches(latents: Tensor) -> Tensor:
    """[B, channels, F, h, w] to [B, F T, 4 channels]: neighbouring 2 x 2 cells side by side."""
    b, _, f, h, w = latents.shape
    grouped = latents.unflatten(4, (w // 2, 2)).unflatten(3, (h // 2, 2)).permute(0, 2, 3, 5, 1, 4, 6)
    return grouped.reshape(b, f * (h // 2) * (w // 2), -1)


class AudioProjector(nn.Module):
    """Audio features to tokens; those of one latent frame are mixed, so that each knows the whole span."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = config.audio_tokens
        self.mix = nn.Sequential(
            nn.Linear(config.audio_tokens * config.audio_width, config.audio_mix_width),
            nn.SiLU(),
            nn.Linear(config.audio_mix_width, config.audio_tokens * config.width),
        )
        # Without a norm what changes in speech is a tenth of what stays, and the model learns to ignore both.
        self.norm = nn.LayerNorm(config.width, config.eps)

    def forward(self, features: Tensor) -> Tensor:
        """[B, P + F, n, audio_width] to [B, P + F, n, C]."""
        return self.norm(self.mix(features.flatten(2)).unflatten(-1, (self.tokens, -1)))


class RMSNorm(nn.Module):
    """Norm over the last axis; its scale follows the input's type, so that the fused kernel runs under autocast.

    CPUs have no fused kernel: without gradients, a norm and products in place are a third faster than torch's own.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return functional.rms_norm(x, x.shape[-1:], weight, self.eps)
        wide = x.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = size.square_().div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (wide * scale).mul_(weight).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm_q = RMSNorm(config.width, config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(config.width, config.eps) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values [B, L, N, D], not rotated."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        split = (-1, (self.heads, q.shape[-1] // self.heads))
        return (
            self.norm_q(q).to(v.dtype).unflatten(*split),
            self.norm_k(k).to(v.dtype).unflatten(*split),
            v.unflatten(*split),
        )


class CrossAttention(nn.Module):
    """Text for every block; one audio stream beside it, with the query shared."""

    def __init__(self, config: ModelConfig, window: int) -> None:
        super().__init__()
        width = config.width
        self.heads, self.window = config.heads, window
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm_q = RMSNorm(width, config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(width, config.eps) if config.qk_norm else nn.Identity()
        if window:
            self.audio_key, self.audio_value = nn.Linear(width, width), nn.Linear(width, width)
            self.audio_out = nn.Linear(width, width, bias=False)
            self.audio_slot = nn.Parameter(torch.randn(window * config.audio_tokens, width) * 0.5)
            nn.init.zeros_(self.audio_value.weight)
            nn.init.zeros_(self.audio_value.bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def hear(self, text: Tensor, audio: Tensor | None, frames: int) -> "Heard":
        """Keys and values of text [B, Lt, C] and audio [B, P + F, n, C], None where the branch is absent."""
        value = self.value(text)
        read = self._heads(self.norm_k(self.key(text)).to(value.dtype)), self._heads(value)
        if audio is None:
            return Heard(read, None)
        # Normed before windows repeat them: on small pictures windows hold several times the tokens of the picture.
        keys = audio_windows(self.norm_k(self.audio_key(audio)), self.window, frames)
        keys = (keys + self.audio_slot.to(keys.dtype)).flatten(0, 1)
        values = audio_windows(self.audio_value(audio), self.window, frames).flatten(0, 1)
        return Heard(read, (self._heads(keys.to(values.dtype)), self._heads(values)))

    def forward(self, x: Tensor, heard: "Heard", frames: int) -> Tensor:
        """X [B, F T, C] and what `hear` made for its F latent frames."""
        q = self._heads(self.norm_q(self.query(x)).to(heard.text[1].dtype))
        out: Tensor = self.out(attend(q, *heard.text))
        if heard.audio is None:
            return out
        per_frame = q.unflatten(1, (frames, -1)).flatten(0, 1)
        spoken = attend(per_frame, *heard.audio)
        return out + self.audio_out(spoken.unflatten(0, (x.shape[0], frames)).flatten(1, 2))


@dataclass(frozen=True, slots=True)
class Heard:
    """What text and voice come to in the cross-attention of one block: keys and values, by head."""

    text: tuple[Tensor, Tensor]
    """[B, Lt, N, D] each."""
    audio: tuple[Tensor, Tensor] | None
    """[B F, window n, N, D] each."""


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """X [B, F T, C] scaled and shifted by latent frame, [B, F, C] each, in one pass over memory."""
    grouped = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], grouped, 1 + scale[:, :, None]).flatten(1, 2)


def add_gated(x: Tensor, change: Tensor, gate: Tensor) -> Tensor:
    """X [B, F T, C] and what a gate for each latent frame [B, F, C] lets through of a change."""
    grouped, let = (t.unflatten(1, (gate.shape[1], -1)) for t in (x, change))
    return torch.addcmul(grouped, let, gate[:, :, None]).flatten(1, 2)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.listens = index % 2 == 1
        audio = config.audio
        window = (
            (audio.listen_window_latents if self.listens else audio.speak_window_latents) if config.audio_width else 0
        )
        self.modulation = nn.Parameter(torch.randn(6, config.width) / config.width**0.5)
        self.norm = nn.LayerNorm(config.width, config.eps, elementwise_affine=False)
        self.attention = SelfAttention(config)
        self.cross_norm = nn.LayerNorm(config.width, config.eps)
        self.cross = CrossAttention(config, window)
        self.ffn = nn.Sequential(
            nn.Linear(config.width, config.ffn_width), nn.GELU("tanh"), nn.Linear(config.ffn_width, config.width)
        )

    def hear(self, branches: "_Branches | None", frames: int) -> Heard:
        """What this block hears."""
        assert branches is not None
        return self.cross.hear(branches.text, branches.listen if self.listens else branches.speak, frames)

    def forward(self, x: Tensor, step: "_Pass", layer: int) -> Tensor:
        """X [B, L, C]: video tokens first, then references."""
        modulation = step.modulation + self.modulation.to(x.dtype)
        query, key, unturned, value = self.enter(x, modulation, step.rotation)
        attended = step.self_attend(query, key, value, layer)
        # After the past was read: writing a chunk replaces the oldest latent frames of the ring.
        if step.record is not None:
            step.record(layer, unturned, value)
        heard = step.heard[layer] if step.heard is not None else self.hear(step.branches, step.frames)
        return self.leave(x, attended, modulation, heard, step.frames, step.video_tokens)

    def enter(self, x: Tensor, modulation: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Up to self-attention: queries and keys, rotated, keys as they were, values, each [B, L, N, D]."""
        shift, scale = modulation.unbind(-2)[:2]
        q, k, v = self.attention.project(modulate(self.norm(x), shift, scale))
        return rotate(q, rotation), rotate(k, rotation), k, v

    def leave(
        self, x: Tensor, attended: Tensor, modulation: Tensor, heard: Heard, frames: int, video_tokens: int
    ) -> Tensor:
        """From what self-attention gave [B, L, C] on; only the video tokens hear."""
        gate_a, shift, scale, gate_f = modulation.unbind(-2)[2:]
        x = add_gated(x, self.attention.out(attended), gate_a)
        video = x[:, :video_tokens]
        video = video + self.cross(self.cross_norm(video), heard, frames)
        x = torch.cat([video, x[:, video_tokens:]], dim=1) if x.shape[1] > video_tokens else video
        return add_gated(x, self.ffn(modulate(self.norm(x), shift, scale)), gate_f)


LOWEST_SIGMA = 0.05
"""Velocities of a model that predicts clean latents are taken at this level below it (arXiv 2511.13720)."""

Record = Callable[[int, Tensor, Tensor], None]
"""Receives each layer's un-rotated keys and values."""


@dataclass(frozen=True, slots=True)
class _Branches:
    """Embedded text [B, Lt, C] and voices [B, P + F, n, C]; None where a model has no voices."""

    text: Tensor
    speak: Tensor | None
    listen: Tensor | None


@dataclass(slots=True)
class _Pass:
    """What is the same for every block of one forward pass."""

    time: Tensor
    """[B, F + R, C] timestep embedding."""
    modulation: Tensor
    """[B, F + R, 6, C]."""
    rotation: Tensor
    """[L, D] or [B, L, D] of this pass's own tokens, from `rope3d`."""
    past_rotation: Tensor
    """The same for the keys in the cache; empty without one."""
    mask: Tensor | None
    """[B, 1, 1, keys], or None where every key counts."""
    layout: CacheLayout | None
    frames: int
    video_tokens: int
    heard: tuple[Heard, ...] | None
    """By block, where it is known beforehand ..."""
    branches: _Branches | None
    """... else each block makes its own of these."""
    cache: KVCache | None
    record: Record | None
    sequence: SequenceGroup | None
    """Processes that share the tokens; then `rotation` and `video_tokens` are this one's."""

    def self_attend(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """Attention of this pass's tokens over themselves and, in the causal case, over the cache."""
        if self.sequence is not None:
            assert self.mask is None, "processes that share tokens need the same references in every row"
            return self.sequence.attend(query, key, value)
        if self.cache is None or self.layout is None:
            return attend(query, key, value, self.mask)
        return self.cache.attend(layer, self.layout, self.past_rotation, (query, key, value), self.mask)


class DiffusionTransformer(nn.Module):
    """Predicts the velocity of video latents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.recompute, self.rotate = config, False, rotate
        self.sequence: SequenceGroup | None = None
        self.reach_all = False
        c = config.width
        self.patch = nn.Linear(4 * config.latent_channels, c)
        if config.codes_residuals:
            self.anchor = nn.Linear(4 * config.latent_channels, c, bias=False)
        self.time = nn.Sequential(nn.Linear(config.time_width, c), nn.SiLU(), nn.Linear(c, c))
        self.time_modulation = nn.Linear(c, 6 * c)
        self.text = nn.Sequential(nn.Linear(config.text_width, c), nn.GELU("tanh"), nn.Linear(c, c))
        self.null_text = nn.Parameter(torch.zeros(1, 1, c))
        if config.audio_width:
            self.speak, self.listen = (AudioProjector(config) for _ in range(2))
            self.null_speak, self.null_listen = (nn.Parameter(torch.zeros(1, 1, 1, c)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.head_norm = nn.LayerNorm(c, config.eps, elementwise_affine=False)
        self.head_modulation = nn.Parameter(torch.randn(2, c) / c**0.5)
        self.head = nn.Linear(c, 4 * config.latent_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def fuse(self) -> None:
        """Compile what lies between the attentions, for inference: norms, gates and rotations join the products."""
        # One code serves plain, adapted and 8-bit matrices, both voices' windows and the shapes of several sessions.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self.rotate = torch.compile(rotate, dynamic=False)
        for block in self.blocks:
            for part in ("enter", "leave"):
                setattr(block, part, torch.compile(getattr(block, part), dynamic=False))

    def tokens(self, latents: Tensor) -> Tensor:
        """[B, channels, F, h, w] to [B, F T, C]; where processes share the tokens, this one's."""
        return self.patch(self._own(patches(latents), latents.shape[2]))

    def _own(self, tokens: Tensor, frames: int) -> Tensor:
        return tokens if self.sequence is None else self.sequence.own(tokens, frames)

    def _audio(self, tokens: Tensor | None, embed: nn.Module, null: Tensor, batch: int, frames: int) -> Tensor:
        if tokens is None:
            shape = (batch, frames + self.config.context_latents, self.config.audio_tokens, self.config.width)
            return null.expand(shape)
        return embed(tokens)

    def _embed(self, conditions: Conditions, batch: int, frames: int) -> _Branches:
        """Text and voices as tokens, nulls where they are absent."""
        text = self.null_text.expand(batch, -1, -1)
        if conditions.text is not None:
            absent, embedded = (conditions.text == 0).all(dim=(1, 2)), self.text(conditions.text)
            text = torch.where(absent[:, None, None], text.to(embedded.dtype), embedded)
        if not self.config.audio_width:
            return _Branches(text, None, None)
        speak = self._audio(conditions.speak, self.speak, self.null_speak, batch, frames)
        return _Branches(text, speak, self._audio(conditions.listen, self.listen, self.null_listen, batch, frames))

    def hear(self, conditions: Conditions, batch: int, frames: int) -> Conditions:
        """The same conditions with what they come to in every block, which the passes of one chunk can share.

        Args:
            conditions: in the type of the weights.
            batch: rows.
            frames: latent frames that will be computed.
        """
        branches = self._embed(conditions, batch, frames)
        heard = tuple(block.hear(branches, frames) for block in self.blocks)  # type: ignore[operator]
        return replace(conditions, heard=heard)

    def optional_weights(self) -> list[nn.Parameter]:
        """Those that a pass leaves out with a branch; with `reach_all` they then get zeros as gradients, not None."""
        return [weight for of in self.branches().values() for side in of for weight in side]

    def branches(self) -> dict[str, tuple[list[nn.Parameter], list[nn.Parameter]]]:
        """Of each optional branch the weights that a given condition uses, and those that stand in for it."""
        found = {"text": (list(self.text.parameters()), [self.null_text])}
        if self.config.audio_width:
            found["speak"] = (list(self.speak.parameters()), [self.null_speak])
            found["listen"] = (list(self.listen.parameters()), [self.null_listen])
        return found

    def forward(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditions: Conditions,
        cache: KVCache | None = None,
        record: Record | None = None,
    ) -> Tensor:
        """Predict velocities.

        Args:
            latents: [B, channels, F, h, w] noisy latents (clean ones where sigma is 0).
            sigma: [B, F] noise level of each latent frame.
            conditions: references are read only without a cache; with one they are in it already.
            cache: history of the streaming model; None makes the pass bidirectional over the F frames.
            record: gets every layer's keys and values; `cache.write` stores the chunk (the caller then advances).

        Returns:
            [B, channels, F, h, w].
        """
        b, channels, f, h, w = latents.shape
        x = self.tokens(latents)
        if self.config.codes_residuals:
            anchor = self.anchor(self._own(patches(latents[:, :, :1]), 1)) if cache is None else cache.anchor
            x = x + anchor.to(x.dtype).repeat(1, f, 1)
        references = conditions.references if cache is None else None
        step = self._prepare(sigma, conditions, references, cache, (f, h // 2, w // 2))
        step.record = record
        if references is not None:
            x = torch.cat([x, self.tokens(references.transpose(1, 2))], dim=1)
        for layer, block in enumerate(self.blocks):
            if self.recompute and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, step, layer, use_reentrant=False)
            else:
                x = block(x, step, layer)
        shift, scale = (step.time[:, :f, None] + self.head_modulation.to(x.dtype)).unbind(-2)
        out = self.head(modulate(self.head_norm(x[:, : step.video_tokens]), shift, scale))
        if self.sequence is not None:
            out = self.sequence.whole(out, f)
        out = out.reshape(b, f, h // 2, w // 2, channels, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
        out = out.reshape(b, channels, f, h, w).float()
        if self.config.predicts == "velocity":
            return out
        return (latents - out) / sigma[:, None, :, None, None].clamp(min=LOWEST_SIGMA)

    def _prepare(
        self,
        sigma: Tensor,
        conditions: Conditions,
        references: Tensor | None,
        cache: KVCache | None,
        grid: tuple[int, int, int],
    ) -> _Pass:
        (frames, rows, columns), batch, split = grid, sigma.shape[0], self.config.rope_split
        assert cache is None or self.sequence is None, "a streaming pass shares no tokens"
        positions, mask = torch.arange(frames, device=sigma.device), None
        if references is not None:
            assert conditions.reference_positions is not None, "references need their positions"
            sigma = torch.cat([sigma, sigma.new_zeros(batch, references.shape[1])], dim=1)
            given = conditions.reference_positions.to(sigma.device)
            if given.dim() == 2 and bool((given == ABSENT).any()):
                seen = torch.cat([given.new_ones(batch, frames, dtype=torch.bool), given != ABSENT], dim=1)
                mask = seen.repeat_interleave(rows * columns, dim=1)[:, None, None]
            positions = torch.cat([positions.expand(*given.shape[:-1], -1), given], dim=-1)
        tokens = rows * columns if self.sequence is None else rows * columns // self.sequence.size
        layout = None if cache is None else cache.layout(frames)
        if cache is not None:
            cache.turn = self.rotate  # also where a state was read from a file
        if cache is None or layout is None:
            rotation = self._own(rope3d(positions, rows, columns, split), positions.shape[-1])
            past_rotation = rotation[..., :0, :]
        else:
            rotation = rope3d(layout.chunk_positions, rows, columns, split)
            past = torch.cat([cache.reference_positions, layout.slot_positions], dim=1)
            past_rotation = rope3d(past, rows, columns, split)
            mask = cache.mask(layout, frames)
        time = self.time(timestep_embedding(sigma, self.config.time_width).to(self.patch.weight.dtype))
        if self.reach_all:
            time = time + 0.0 * sum(weight.flatten()[0] for weight in self.optional_weights())
        return _Pass(
            time=time, modulation=self.time_modulation(functional.silu(time)).unflatten(-1, (6, -1)),
            rotation=rotation, past_rotation=past_rotation, mask=mask, layout=layout, frames=frames,
            video_tokens=frames * tokens, heard=conditions.heard,
            branches=self._embed(conditions, batch, frames) if conditions.heard is None else None,
            cache=cache, record=None, sequence=self.sequence,
        )  # fmt: skip

    def prime(self, cache: KVCache, image: Tensor, conditions: Conditions) -> None:
        """Put the character into an empty cache: references apart, the image as latent 0.

        Args:
            cache: empty, for B rows; changed in place.
            image: [B, channels, 1, h, w] clean latent of the character image.
            conditions: text and references are read.
        """
        tokens = image.shape[3] * image.shape[4] // 4
        keys, values = [], []

        def record(layer: int, k: Tensor, v: Tensor) -> None:
            for index in range(cache.planes):
                cache.plane(index).write(layer, k[:, :tokens], v[:, :tokens])
            keys.append(k[:, tokens:].detach())
            values.append(v[:, tokens:].detach())

        self(image, image.new_zeros(image.shape[0], 1), conditions.without("speak", "listen"), record=record)
        cache.advance(1)
        if self.config.codes_residuals:
            cache.anchor = self.anchor(patches(image))
        cache.reference_keys, cache.reference_values = torch.stack(keys), torch.stack(values)
        if conditions.references is not None and conditions.reference_positions is not None:
            cache.reference_positions = conditions.reference_positions.to(image.device).expand(image.shape[0], -1)
