"""Blocks of the Diffusion Transformer: modulated self-attention, cross-attention to text and audio, feed-forward.

B batch, F latent frames, R reference images, T tokens a latent frame, L = (F + R) T tokens, N heads, D head width,
C model width, n audio tokens a latent frame, P latent frames of audio context.

Text reaches every block, speak audio the even blocks, listen audio the odd blocks, with a shared query:
out = W_text A_text + W_audio A_audio; audio values start at zero (paper section 3.2).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lpm_model.attention import attend, audio_windows, rotate
from lpm_model.attention_plan import AttentionPlan
from lpm_model.config import ModelConfig

Record = Callable[[int, Tensor, Tensor], None]
"""Receives each layer's index, keys before RoPE and values, [B, L, N, D] each."""


@dataclass(frozen=True, slots=True)
class CrossInputs:
    """Embedded text [B, Lt, C] and audio [B, P + F, n, C]; None where a model has no audio branches."""

    text: Tensor
    speak: Tensor | None
    listen: Tensor | None


@dataclass(frozen=True, slots=True)
class CrossKV:
    """Cross-attention keys and values of one block, by head."""

    text: tuple[Tensor, Tensor]
    """[B, Lt, N, D] each."""
    audio: tuple[Tensor, Tensor] | None
    """[B F, window n, N, D] each; None without an audio branch."""


@dataclass(frozen=True, slots=True)
class BlockContext:
    """Inputs that all blocks of one forward pass share."""

    modulation: Tensor
    """[B, F + R, 6, C]."""
    attention: AttentionPlan
    frames: int
    """F."""
    video_tokens: int
    """Tokens of the F latent frames (of this process, where several share them); references follow."""
    cross_kv: tuple[CrossKV, ...] | None
    """By block, if it was computed beforehand; otherwise each block computes it from `cross_inputs`."""
    cross_inputs: CrossInputs | None
    record: Record | None


class AudioProjector(nn.Module):
    """Audio features to tokens; those of one latent frame are mixed, so that each covers the whole span."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = config.audio_tokens
        self.mix = nn.Sequential(
            nn.Linear(config.audio_tokens * config.audio_width, config.audio_mix_width),
            nn.SiLU(),
            nn.Linear(config.audio_mix_width, config.audio_tokens * config.width),
        )
        # Without a norm, speech varies by a tenth of its constant part, and the model learns to ignore the audio.
        self.norm = nn.LayerNorm(config.width, config.eps)

    def forward(self, features: Tensor) -> Tensor:
        """Project features [B, P + F, n, audio_width] to tokens [B, P + F, n, C]."""
        return self.norm(self.mix(features.flatten(2)).unflatten(-1, (self.tokens, -1)))


class RMSNorm(nn.Module):
    """Norm over the last axis; its scale follows the input's type, so that the fused kernel runs under autocast.

    CPUs have no fused kernel: without gradients, a norm and in-place multiplications are a third faster than torch's.
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
    """Projections of self-attention; the attention itself is the pass's `AttentionPlan`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.norm_q = RMSNorm(config.width, config.eps) if config.qk_norm else nn.Identity()
        self.norm_k = RMSNorm(config.width, config.eps) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x [B, L, C] to queries, keys and values, [B, L, N, D] each, not rotated."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        split = (-1, (self.heads, q.shape[-1] // self.heads))
        return (
            self.norm_q(q).to(v.dtype).unflatten(*split),
            self.norm_k(k).to(v.dtype).unflatten(*split),
            v.unflatten(*split),
        )


class CrossAttention(nn.Module):
    """Attention to text, and to one audio stream with the same query."""

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

    def cross_kv(self, text: Tensor, audio: Tensor | None, frames: int) -> CrossKV:
        """Compute keys and values, which all passes over the same conditions share.

        Args:
            text: [B, Lt, C].
            audio: [B, P + F, n, C]; None without an audio branch.
            frames: F.

        Returns:
            Text [B, Lt, N, D] and audio [B F, window n, N, D].
        """
        value = self.value(text)
        from_text = self._heads(self.norm_k(self.key(text)).to(value.dtype)), self._heads(value)
        if audio is None:
            return CrossKV(from_text, None)
        # Normalise before windowing, which repeats each token `window` times.
        keys = audio_windows(self.norm_k(self.audio_key(audio)), self.window, frames)
        keys = (keys + self.audio_slot.to(keys.dtype)).flatten(0, 1)
        values = audio_windows(self.audio_value(audio), self.window, frames).flatten(0, 1)
        return CrossKV(from_text, (self._heads(keys.to(values.dtype)), self._heads(values)))

    def forward(self, x: Tensor, kv: CrossKV, frames: int) -> Tensor:
        """Attend from x [B, F T, C] to text and audio, [B, F T, C]."""
        q = self._heads(self.norm_q(self.query(x)).to(kv.text[1].dtype))
        out: Tensor = self.out(attend(q, *kv.text))
        if kv.audio is None:
            return out
        per_frame = q.unflatten(1, (frames, -1)).flatten(0, 1)
        from_audio = attend(per_frame, *kv.audio)
        return out + self.audio_out(from_audio.unflatten(0, (x.shape[0], frames)).flatten(1, 2))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift x by latent frame, in one pass over memory.

    Args:
        x: [B, F T, C].
        shift: [B, F, C].
        scale: [B, F, C].

    Returns:
        [B, F T, C].
    """
    grouped = x.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], grouped, 1 + scale[:, :, None]).flatten(1, 2)


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """Add an update times its gate by latent frame.

    Args:
        x: [B, F T, C].
        update: [B, F T, C].
        gate: [B, F, C].

    Returns:
        [B, F T, C].
    """
    grouped, change = (t.unflatten(1, (gate.shape[1], -1)) for t in (x, update))
    return torch.addcmul(grouped, change, gate[:, :, None]).flatten(1, 2)


class Block(nn.Module):
    """One transformer block with adaptive norms (AdaLN), a timestep for each latent frame."""

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

    def cross_kv(self, inputs: CrossInputs, frames: int) -> CrossKV:
        """Compute this block's cross-attention keys and values, see `CrossAttention.cross_kv`."""
        return self.cross.cross_kv(inputs.text, inputs.listen if self.listens else inputs.speak, frames)

    def forward(self, x: Tensor, context: BlockContext, layer: int) -> Tensor:
        """Run the block on x [B, L, C], video tokens first, then references; returns [B, L, C]."""
        modulation = context.modulation + self.modulation.to(x.dtype)
        query, key, unrotated, value = self.pre_attention(x, modulation, context.attention.rotation)
        attended = context.attention.attend(layer, query, key, value)
        # Record only after attention has read the past: writing a chunk evicts the oldest latent frames of the ring.
        if context.record is not None:
            context.record(layer, unrotated, value)
        if context.cross_kv is not None:
            kv = context.cross_kv[layer]
        else:
            assert context.cross_inputs is not None
            kv = self.cross_kv(context.cross_inputs, context.frames)
        return self.post_attention(x, attended, modulation, kv, context.frames, context.video_tokens)

    def pre_attention(self, x: Tensor, modulation: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run the block up to self-attention.

        Args:
            x: [B, L, C].
            modulation: [B, F + R, 6, C].
            rotation: [L, D] or [B, L, D].

        Returns:
            Rotated queries, rotated keys, keys before RoPE, and values, each [B, L, N, D].
        """
        shift, scale = modulation.unbind(-2)[:2]
        q, k, v = self.attention.project(modulate(self.norm(x), shift, scale))
        return rotate(q, rotation), rotate(k, rotation), k, v

    def post_attention(
        self, x: Tensor, attended: Tensor, modulation: Tensor, kv: CrossKV, frames: int, video_tokens: int
    ) -> Tensor:
        """Run the rest of the block; only the video tokens attend to text and audio.

        Args:
            x: [B, L, C].
            attended: [B, L, C] from self-attention.
            modulation: [B, F + R, 6, C].
            kv: of cross-attention.
            frames: F.
            video_tokens: the first F T of the tokens.

        Returns:
            [B, L, C].
        """
        gate_a, shift, scale, gate_f = modulation.unbind(-2)[2:]
        x = add_gated(x, self.attention.out(attended), gate_a)
        video = x[:, :video_tokens]
        video = video + self.cross(self.cross_norm(video), kv, frames)
        x = torch.cat([video, x[:, video_tokens:]], dim=1) if x.shape[1] > video_tokens else video
        return add_gated(x, self.ffn(modulate(self.norm(x), shift, scale)), gate_f)
