"""The Diffusion Transformer: bidirectional over a clip, or causal over a chunk when a cache is given.

B batch, F latent frames, R reference images, h w latent grid, T tokens a latent frame (h w / 4), L = (F + R) T tokens,
N heads, D head width, C model width, n audio tokens a latent frame, P latent frames of audio context.

- patch 1 x 2 x 2, AdaLN with a timestep for each latent frame, 3-D RoPE, RMS-normed queries and keys
- references are appended as clean tokens with their own temporal offsets, no extra parameters (paper section 3.3)
- layout and names of the rest follow Wan 2.1, so that its weights fit; the blocks: lpm_model.blocks
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lpm_model.attention import rope3d, rotate
from lpm_model.attention_plan import AttentionPlan, CachedAttention, FullAttention, SequenceParallelAttention
from lpm_model.blocks import AudioProjector, Block, BlockContext, CrossInputs, CrossKV, Record, modulate
from lpm_model.cache import KVCache
from lpm_model.config import ABSENT, ModelConfig
from lpm_model.execution import EAGER, Execution

MIN_SIGMA = 0.05
"""Lower bound of sigma when velocities are computed from predicted clean latents (arXiv 2511.13720)."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions of a generation; None where a branch is absent (a learned null replaces it)."""

    text: Tensor | None = None
    """[B, text_tokens, text_width]; a row of zeros is an absent text."""
    speak: Tensor | None = None
    """[B, P + F, n, audio_width]: the character's own audio, P >= context_latents frames before the first."""
    listen: Tensor | None = None
    """[B, P + F, n, audio_width]: the partner's audio."""
    references: Tensor | None = None
    """[B, R, channels, h, w]: latents of reference images."""
    reference_positions: Tensor | None = None
    """[R], or [B, R] where rows differ: negative temporal positions (config.REFERENCE_KINDS), or ABSENT."""
    cross_kv: "tuple[CrossKV, ...] | None" = None
    """Cross-attention keys and values of each block, if `DiffusionTransformer.with_cross_kv` has computed them."""

    def without(self, *names: str) -> "Conditions":
        """Return the same with some branches absent."""
        return replace(self, cross_kv=None, **dict.fromkeys(names))

    def row(self, index: int) -> "Conditions":
        """Return the conditions of one row of a batch whose references are already in a cache."""
        return self.map(lambda value: value[index : index + 1])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        """Return the same with `change` applied to every per-row tensor; reference_positions stay."""
        names = ("text", "speak", "listen", "references")
        present = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, cross_kv=None, **{name: change(value) for name, value in present.items()})


def timestep_embedding(sigma: Tensor, width: int) -> Tensor:
    """Embed 1000 sigma by sinusoids, cosines first as in Wan 2.1; sigma [...] to [..., width]."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device, dtype=torch.float32) / half)
    angles = 1000 * sigma.float()[..., None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def patchify(latents: Tensor) -> Tensor:
    """Group neighbouring 2 x 2 cells: [B, channels, F, h, w] to [B, F T, 4 channels]."""
    return rearrange(latents, "b c f (h p) (w q) -> b (f h w) (c p q)", p=2, q=2)


def unpatchify(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Undo `patchify`: [B, F rows columns, 4 channels] to [B, channels, F, 2 rows, 2 columns]."""
    return rearrange(tokens, "b (f h w) (c p q) -> b c f (h p) (w q)", h=rows, w=columns, p=2, q=2)


class DiffusionTransformer(nn.Module):
    """Predicts the velocity of video latents.

    Args:
        config: shape.
        execution: how passes run.
    """

    def __init__(self, config: ModelConfig, execution: Execution = EAGER) -> None:
        super().__init__()
        self.config, self.execution, self._rotate = config, EAGER, rotate
        c = config.width
        self.patch = nn.Linear(4 * config.latent_channels, c)
        if config.uses_residuals:
            self.anchor = nn.Linear(4 * config.latent_channels, c, bias=False)  # embeds the reference image
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
        self.set_execution(execution)

    def set_execution(self, execution: Execution) -> None:
        """Change how passes run from now on.

        Raises:
            ValueError: `compiled` is False for a model that is compiled already.
        """
        if self.execution.compiled and not execution.compiled:
            raise ValueError("execution.compiled is False, but this model is compiled: load it again")
        if execution.compiled and not self.execution.compiled:
            self._compile()
        self.execution = execution

    def _compile(self) -> None:
        # The same code object runs plain, LoRA and FP8 layers, both audio windows, and the shapes of several sessions.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        self._rotate = torch.compile(rotate, dynamic=False)
        for block in self.blocks:
            for part in ("pre_attention", "post_attention"):
                setattr(block, part, torch.compile(getattr(block, part), dynamic=False))

    def tokens(self, latents: Tensor) -> Tensor:
        """Embed latents [B, channels, F, h, w] as tokens [B, F T, C], or this process's shard of them."""
        return self.patch(self._shard(patchify(latents), latents.shape[2]))

    def _shard(self, tokens: Tensor, frames: int) -> Tensor:
        group = self.execution.sequence_group
        return tokens if group is None else group.shard(tokens, frames)

    def _audio(self, features: Tensor | None, embed: nn.Module, null: Tensor, batch: int, frames: int) -> Tensor:
        if features is None:
            shape = (batch, frames + self.config.context_latents, self.config.audio_tokens, self.config.width)
            return null.expand(shape)
        return embed(features)

    def _cross_inputs(self, conditions: Conditions, batch: int, frames: int) -> CrossInputs:
        """Embed text and audio, nulls where they are absent."""
        text = self.null_text.expand(batch, -1, -1)
        if conditions.text is not None:
            absent, embedded = (conditions.text == 0).all(dim=(1, 2)), self.text(conditions.text)
            text = torch.where(absent[:, None, None], text.to(embedded.dtype), embedded)
        if not self.config.audio_width:
            return CrossInputs(text, None, None)
        speak = self._audio(conditions.speak, self.speak, self.null_speak, batch, frames)
        return CrossInputs(text, speak, self._audio(conditions.listen, self.listen, self.null_listen, batch, frames))

    def with_cross_kv(self, conditions: Conditions, batch: int, frames: int) -> Conditions:
        """Compute the cross-attention keys and values of every block, which all passes of one chunk can share.

        Args:
            conditions: in the type of the weights.
            batch: B.
            frames: latent frames of the passes.

        Returns:
            The same conditions with `cross_kv`.
        """
        inputs = self._cross_inputs(conditions, batch, frames)
        kv = tuple(block.cross_kv(inputs, frames) for block in self.blocks)  # type: ignore[operator]
        return replace(conditions, cross_kv=kv)

    def branch_parameters(self) -> dict[str, tuple[list[nn.Parameter], list[nn.Parameter]]]:
        """Return, for each optional branch, the parameters that a given condition uses and those of its null."""
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
            conditions: references are ignored if a cache is given, which holds them already.
            cache: history of the streaming model; None makes the pass bidirectional over the F frames.
            record: receives every layer's keys and values; `cache.write` stores the chunk (the caller then advances).

        Returns:
            [B, channels, F, h, w].
        """
        f, rows, columns = latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2
        x = self.tokens(latents)
        if self.config.uses_residuals:
            image = self.embed_image(latents[:, :, :1]) if cache is None else cache.image_embedding
            x = x + image.to(x.dtype).repeat(1, f, 1)
        references = conditions.references if cache is None else None
        count = 0 if references is None else references.shape[1]
        time = self._time(sigma, count)
        context = self._context(time, conditions, cache, record, (f, rows, columns))
        if references is not None:
            x = torch.cat([x, self.tokens(references.transpose(1, 2))], dim=1)
        for layer, block in enumerate(self.blocks):
            if self.execution.activation_checkpointing and cache is None and torch.is_grad_enabled():
                x = checkpoint(block, x, context, layer, use_reentrant=False)
            else:
                x = block(x, context, layer)
        shift, scale = (time[:, :f, None] + self.head_modulation.to(x.dtype)).unbind(-2)
        out = self.head(modulate(self.head_norm(x[:, : context.video_tokens]), shift, scale))
        if self.execution.sequence_group is not None:
            out = self.execution.sequence_group.gather(out, f)
        out = unpatchify(out, rows, columns).float()
        if self.config.predicts == "velocity":
            return out
        return (latents - out) / sigma[:, None, :, None, None].clamp(min=MIN_SIGMA)

    def embed_image(self, image: Tensor) -> Tensor:
        """Embed the reference-image latent [B, channels, 1, h, w] as [B, T, C], which is added to every token."""
        embedded: Tensor = self.anchor(self._shard(patchify(image), 1))
        return embedded

    def _time(self, sigma: Tensor, references: int) -> Tensor:
        """Embed noise levels [B, F], followed by level 0 for each reference: [B, F + R, C]."""
        if references:
            sigma = torch.cat([sigma, sigma.new_zeros(sigma.shape[0], references)], dim=1)
        time: Tensor = self.time(timestep_embedding(sigma, self.config.time_width).to(self.patch.weight.dtype))
        if self.execution.touch_all_parameters:
            sides = [side for pair in self.branch_parameters().values() for side in pair]
            time = time + 0.0 * sum(parameter.flatten()[0] for side in sides for parameter in side)
        return time

    def _context(
        self,
        time: Tensor,
        conditions: Conditions,
        cache: KVCache | None,
        record: Record | None,
        grid: tuple[int, int, int],
    ) -> BlockContext:
        (frames, rows, columns), batch, group = grid, time.shape[0], self.execution.sequence_group
        tokens = rows * columns if group is None else rows * columns // group.size
        if cache is not None:
            assert group is None, "sequence parallelism does not support a KV cache"
            plan: AttentionPlan = CachedAttention.plan(cache, grid, self.config.rope_split, self._rotate)
        else:
            plan = self._full_attention(conditions, grid, batch, time.device)
        inputs = self._cross_inputs(conditions, batch, frames) if conditions.cross_kv is None else None
        return BlockContext(
            modulation=self.time_modulation(functional.silu(time)).unflatten(-1, (6, -1)), attention=plan,
            frames=frames, video_tokens=frames * tokens, cross_kv=conditions.cross_kv, cross_inputs=inputs,
            record=record,
        )  # fmt: skip

    def _full_attention(
        self, conditions: Conditions, grid: tuple[int, int, int], batch: int, device: torch.device
    ) -> AttentionPlan:
        """Plan a bidirectional pass over the video's tokens and those of the references."""
        (frames, rows, columns), group = grid, self.execution.sequence_group
        positions, mask = torch.arange(frames, device=device), None
        if conditions.references is not None:
            assert conditions.reference_positions is not None, "references need their positions"
            given = conditions.reference_positions.to(device)
            if given.dim() == 2 and bool((given == ABSENT).any()):
                present = torch.cat([given.new_ones(batch, frames, dtype=torch.bool), given != ABSENT], dim=1)
                mask = present.repeat_interleave(rows * columns, dim=1)[:, None, None]
            positions = torch.cat([positions.expand(*given.shape[:-1], -1), given], dim=-1)
        rotation = self._shard(rope3d(positions, rows, columns, self.config.rope_split), positions.shape[-1])
        if group is None:
            return FullAttention(rotation, mask)
        assert mask is None, "sequence parallelism needs the same number of references in every row"
        return SequenceParallelAttention(rotation, group)

    def prefill(self, cache: KVCache, image: Tensor, conditions: Conditions) -> None:
        """Write the character to an empty cache: references to their own buffers, the image as latent 0.

        Args:
            cache: empty, for B rows; changed in place.
            image: [B, channels, 1, h, w] clean latent of the reference image.
            conditions: text and references are read.
        """
        tokens = image.shape[3] * image.shape[4] // 4
        keys, values = [], []

        def record(layer: int, k: Tensor, v: Tensor) -> None:
            for index in range(cache.levels):
                cache.level(index).write(layer, k[:, :tokens], v[:, :tokens])
            keys.append(k[:, tokens:].detach())
            values.append(v[:, tokens:].detach())

        self(image, image.new_zeros(image.shape[0], 1), conditions.without("speak", "listen"), record=record)
        cache.advance(1)
        if self.config.uses_residuals:
            cache.image_embedding = self.embed_image(image)
        cache.reference_keys, cache.reference_values = torch.stack(keys), torch.stack(values)
        if conditions.references is not None and conditions.reference_positions is not None:
            cache.reference_positions = conditions.reference_positions.to(image.device).expand(image.shape[0], -1)
