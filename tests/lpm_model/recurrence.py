"""An independent reference for the streaming model: every key of every latent frame in a plain list, no ring.

Written from the rules alone: a chunk sees the references, the first S latent frames, the last W of the others, and
itself; its window is numbered 0, 1, 2 ... in that order; keys are rotated at use.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from lpm_model import flow
from lpm_model.attention import rope3d, rotate
from lpm_model.character import Character
from lpm_model.dit import LOWEST_SIGMA, Conditions, DiffusionTransformer, patches, timestep_embedding
from lpm_model.online import OnlineModel


@dataclass
class Segment:
    """Latents [B, channels, F, h, w] that share a noise level, and what their cross-attention hears."""

    latents: Tensor
    positions: list[int]
    sigma: float
    text: Tensor | None = None
    speak: Tensor | None = None
    listen: Tensor | None = None
    crosses: bool = True


Layer = tuple[Tensor, Tensor, list[int]]
"""Un-rotated keys, values [B, tokens, N, D], and the temporal position of each latent frame."""


def joint_pass(
    dit: DiffusionTransformer, image: Tensor, segments: list[Segment], sees: Tensor, past: list[Layer] | None = None
) -> tuple[list[Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """One forward over several segments of a character, under a mask between segments.

    The image is [B, channels, 1, h, w]. Returns velocities per segment and, per layer and segment, keys and values.
    """
    rows, columns = segments[0].latents.shape[3] // 2, segments[0].latents.shape[4] // 2
    anchor = dit.anchor(patches(image))
    xs = [dit.tokens(s.latents) + (anchor.repeat(1, s.latents.shape[2], 1) if s.crosses else 0) for s in segments]
    times = [dit.time(timestep_embedding(torch.tensor([[s.sigma]]), dit.config.time_width)) for s in segments]
    modulations = [dit.time_modulation(functional.silu(t)).unflatten(-1, (6, -1))[0, 0] for t in times]

    def turn(x: Tensor, positions: list[int]) -> Tensor:
        return rotate(x, rope3d(torch.tensor(positions), rows, columns, dit.config.rope_split))

    made: list[list[tuple[Tensor, Tensor]]] = []
    for number, block in enumerate(dit.blocks):
        mods = [(m + block.modulation).unbind(0) for m in modulations]
        qkv = [block.attention.project(block.norm(x) * (1 + m[1]) + m[0]) for x, m in zip(xs, mods, strict=True)]
        made.append([(k, v) for _, k, v in qkv])
        for i, (segment, mod) in enumerate(zip(segments, mods, strict=True)):
            keys = [turn(qkv[j][1], segments[j].positions) for j in range(len(segments)) if sees[i, j]]
            values = [qkv[j][2] for j in range(len(segments)) if sees[i, j]]
            if past is not None:
                keys.insert(0, turn(past[number][0], past[number][2]))
                values.insert(0, past[number][1])
            q, k, v = turn(qkv[i][0], segment.positions), torch.cat(keys, 1), torch.cat(values, 1)
            seen = functional.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)))
            x = xs[i] + mod[2] * block.attention.out(seen.transpose(1, 2).flatten(2))
            if segment.crosses:
                x = x + cross(dit, number, segment, block.cross_norm(x))
            xs[i] = x + mod[5] * block.ffn(block.norm(x) * (1 + mod[4]) + mod[3])
    out = []
    for x, time, segment in zip(xs, times, segments, strict=True):
        shift, scale = (time[0, 0] + dit.head_modulation).unbind(0)
        flat = dit.head(dit.head_norm(x) * (1 + scale) + shift).unflatten(1, (-1, rows, columns))
        cells = flat.unflatten(-1, (segment.latents.shape[1], 2, 2))
        clean = torch.einsum("bfrcdyx->bdfrycx", cells).flatten(5, 6).flatten(3, 4)
        out.append((segment.latents - clean) / max(segment.sigma, LOWEST_SIGMA))
    return out, made


def cross(dit: DiffusionTransformer, number: int, segment: Segment, x: Tensor) -> Tensor:
    """Text and one voice for one segment, through the block's own cross-attention."""
    batch, frames = x.shape[0], segment.latents.shape[2]
    text = dit.null_text.expand(batch, -1, -1) if segment.text is None else dit.text(segment.text)
    voice, embed, null = (
        (segment.listen, dit.listen, dit.null_listen) if number % 2 else (segment.speak, dit.speak, dit.null_speak)
    )
    shape = (batch, dit.config.context_latents + frames, dit.config.audio_tokens, dit.config.width)
    heard = null.expand(shape) if voice is None else embed(voice)
    out: Tensor = dit.blocks[number].cross(x, text, heard, frames)
    return out


@dataclass
class Recurrence:
    """Online LPM over the whole audio at once; `history` holds keys and values of every latent frame ever made."""

    online: OnlineModel
    character: Character
    history: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def prime(self) -> None:
        references = self.character.references.transpose(1, 2)
        segments = [
            Segment(self.character.image, [0], 0.0),
            Segment(references, self.character.positions.tolist(), 0.0, crosses=False),
        ]
        _, made = joint_pass(self.online.backbone, self.character.image, segments, torch.ones(2, 2, dtype=torch.bool))
        self.references = [layer[1] for layer in made]
        self.history = [[layer[0]] for layer in made]

    def past(self) -> tuple[list[Layer], int]:
        """What the next chunk sees, and its first position."""
        config = self.online.online
        count = len(self.history[0])
        kept = list(range(count))[: config.sink_latents]
        kept += list(range(count))[config.sink_latents :][-config.window_latents :]
        layers: list[Layer] = []
        for layer, (keys, values) in zip(self.history, self.references, strict=True):
            ks, vs = [keys, *(layer[i][0] for i in kept)], [values, *(layer[i][1] for i in kept)]
            positions = [*self.character.positions.tolist(), *range(len(kept))]
            layers.append((torch.cat(ks, 1), torch.cat(vs, 1), positions))
        return layers, len(kept)

    def forward(self, latents: Tensor, sigma: float, heard: Conditions) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        past, first = self.past()
        positions = list(range(first, first + latents.shape[2]))
        segment = Segment(latents, positions, sigma, heard.text, heard.speak, heard.listen)
        out, made = joint_pass(
            self.online.backbone, self.character.image, [segment], torch.ones(1, 1, dtype=torch.bool), past
        )
        return out[0], [layer[0] for layer in made]

    def run(self, speak: Tensor, listen: Tensor, text: list[str] | None, seed: int) -> Tensor:
        """Latents [1, channels, k, h, w] for voices of 4000 k samples."""
        online, generator = self.online, torch.Generator().manual_seed(seed)
        self.prime()
        voices = online.clip_features(speak), online.clip_features(listen)
        chunk, context = online.chunk_latents, online.config.context_latents
        shape = (1, online.config.latent_channels, chunk, *self.character.image.shape[3:])
        made = []
        for first in range(1, 1 + speak.shape[1] // 4000, chunk):
            span = slice(first, first + context + chunk)
            heard = Conditions(online.text(text), voices[0][:, span], voices[1][:, span])
            x, clean = torch.randn(shape, generator=generator), torch.empty(0)
            levels = [*online.online.backbone_sigmas, online.online.history_sigma]
            for sigma, following in zip(levels, levels[1:], strict=False):
                clean = x - sigma * self.forward(x, sigma, heard)[0]
                x = flow.interpolate(clean, torch.randn(shape, generator=generator), torch.tensor(following))
            made.append(clean)
            _, pairs = self.forward(x, levels[-1], heard)
            tokens = pairs[0][0].shape[1] // chunk
            for layer, (keys, values) in zip(self.history, pairs, strict=True):
                layer += zip(keys.split(tokens, 1), values.split(tokens, 1), strict=True)
        return torch.cat(made, dim=2)
