"""An independent reference for the streaming model: every key of every latent frame in a plain list, no ring.

Written from the rules alone: a chunk attends to the references, the first S latent frames, the last W of the others,
and itself; its window is numbered 0, 1, 2 ... in that order; keys are rotated at use. The refiner has its own history.
With a history per step, each step attends to what earlier chunks left at the same step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from lpm_model.attention import rope3d, rotate
from lpm_model.character import Character
from lpm_model.dit import MIN_SIGMA, Conditions, DiffusionTransformer, timestep_embedding
from lpm_model.online import REFINER_SEED, OnlineModel


@dataclass
class Segment:
    """Latents [B, channels, F, h, w] that share a noise level, and their cross-attention conditions."""

    latents: Tensor
    positions: list[int]
    sigma: float
    text: Tensor | None = None
    speak: Tensor | None = None
    listen: Tensor | None = None
    crosses: bool = True


Layer = tuple[Tensor, Tensor, list[int]]
"""Un-rotated keys, values [B, tokens, N, D], and the temporal position of each latent frame."""
Draw = Callable[[Sequence[int]], Tensor]
"""Standard normal numbers of a shape."""


def joint_pass(
    dit: DiffusionTransformer, image: Tensor, segments: list[Segment], sees: Tensor, past: list[Layer] | None = None
) -> tuple[list[Tensor], list[list[tuple[Tensor, Tensor]]]]:
    """One forward over several segments of a character, under a mask between segments.

    The image is [B, channels, 1, h, w]. Returns velocities per segment and, per layer and segment, keys and values.
    """
    rows, columns = segments[0].latents.shape[3] // 2, segments[0].latents.shape[4] // 2
    embedded = dit.embed_image(image)
    xs = [dit.tokens(s.latents) + (embedded.repeat(1, s.latents.shape[2], 1) if s.crosses else 0) for s in segments]
    times = [dit.time(timestep_embedding(torch.tensor([[s.sigma]]), dit.config.time_width)) for s in segments]
    modulations = [dit.time_modulation(functional.silu(t)).unflatten(-1, (6, -1))[0, 0] for t in times]

    def rotated(x: Tensor, positions: list[int]) -> Tensor:
        return rotate(x, rope3d(torch.tensor(positions), rows, columns, dit.config.rope_split))

    outputs: list[list[tuple[Tensor, Tensor]]] = []
    for number, block in enumerate(dit.blocks):
        mods = [(m + block.modulation).unbind(0) for m in modulations]
        qkv = [block.attention.project(block.norm(x) * (1 + m[1]) + m[0]) for x, m in zip(xs, mods, strict=True)]
        outputs.append([(k, v) for _, k, v in qkv])
        for i, (segment, mod) in enumerate(zip(segments, mods, strict=True)):
            keys = [rotated(qkv[j][1], segments[j].positions) for j in range(len(segments)) if sees[i, j]]
            values = [qkv[j][2] for j in range(len(segments)) if sees[i, j]]
            if past is not None:
                keys.insert(0, rotated(past[number][0], past[number][2]))
                values.insert(0, past[number][1])
            q, k, v = rotated(qkv[i][0], segment.positions), torch.cat(keys, 1), torch.cat(values, 1)
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
        out.append((segment.latents - clean) / max(segment.sigma, MIN_SIGMA))
    return out, outputs


def cross(dit: DiffusionTransformer, number: int, segment: Segment, x: Tensor) -> Tensor:
    """Text and one audio stream for one segment, through the block's own cross-attention."""
    batch, frames = x.shape[0], segment.latents.shape[2]
    text = dit.null_text.expand(batch, -1, -1) if segment.text is None else dit.text(segment.text)
    audio, embed, null = (
        (segment.listen, dit.listen, dit.null_listen) if number % 2 else (segment.speak, dit.speak, dit.null_speak)
    )
    shape = (batch, dit.config.context_latents + frames, dit.config.audio_tokens, dit.config.width)
    tokens = null.expand(shape) if audio is None else embed(audio)
    attention = dit.blocks[number].cross
    out: Tensor = attention(x, attention.cross_kv(text, tokens, frames), frames)
    return out


@dataclass
class Progress:
    """One network's history: keys and values of all latent frames in plain lists, one for each noise level."""

    online: OnlineModel
    character: Character
    network: DiffusionTransformer
    levels: tuple[float, ...]
    histories: list[list[list[tuple[Tensor, Tensor]]]] = field(default_factory=list)
    """[level][layer][latent frame]."""
    outputs: list[Tensor] = field(default_factory=list)
    """Clean latents [1, channels, 1, h, w]; the image first."""

    def __post_init__(self) -> None:
        outputs = self.encode_references(self.character.references)
        self.histories = [[[layer[0]] for layer in outputs] for _ in self.levels]
        self.outputs = [self.character.image]

    def encode_references(self, references: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
        """Encode references [1, R, channels, h, w]; returns keys and values of image and references, by layer."""
        segments = [
            Segment(self.character.image, [0], 0.0),
            Segment(references.transpose(1, 2), self.character.positions.tolist(), 0.0, crosses=False),
        ]
        _, outputs = joint_pass(self.network, self.character.image, segments, torch.ones(2, 2, dtype=torch.bool))
        self.references = [layer[1] for layer in outputs]
        return outputs

    def visible(self) -> list[int]:
        """Indices of the latent frames that the next chunk attends to."""
        config, every = self.online.online, list(range(len(self.outputs)))
        return every[: config.sink_latents] + every[config.sink_latents :][-config.window_latents :]

    def forward(
        self, latents: Tensor, sigma: float, conditions: Conditions, index: int = 0, visible: list[int] | None = None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        visible = self.visible() if visible is None else visible
        layers: list[Layer] = []
        for layer, (keys, values) in zip(self.histories[index], self.references, strict=True):
            ks, vs = [keys, *(layer[i][0] for i in visible)], [values, *(layer[i][1] for i in visible)]
            layers.append(
                (torch.cat(ks, 1), torch.cat(vs, 1), [*self.character.positions.tolist(), *range(len(visible))])
            )
        positions = list(range(len(visible), len(visible) + latents.shape[2]))
        segment = Segment(latents, positions, sigma, conditions.text, conditions.speak, conditions.listen)
        sees = torch.ones(1, 1, dtype=torch.bool)
        out, outputs = joint_pass(self.network, self.character.image, [segment], sees, layers)
        return out[0], [layer[0] for layer in outputs]

    def write(self, index: int, pairs: list[tuple[Tensor, Tensor]], at: int | None = None) -> None:
        """Append keys and values of a chunk, or replace those from latent frame `at` on."""
        tokens = self.outputs[0].shape[3] * self.outputs[0].shape[4] // 4
        for layer, (keys, values) in zip(self.histories[index], pairs, strict=True):
            new = list(zip(keys.split(tokens, 1), values.split(tokens, 1), strict=True))
            if at is None:
                layer += new
            else:
                layer[at : at + len(new)] = new

    def append(self, clean: Tensor, conditions: Conditions, draw: Draw, at: int | None = None) -> None:
        """Passes that write a chunk, after its steps; `at` writes it again over sink and window so far."""
        for index, level in enumerate(self.levels):
            seen = (1 - level) * clean + level * draw(clean.shape) if level else clean
            sink = self.online.online.sink_latents
            visible = None if at is None else [*range(sink), *range(self.first(), at)]
            self.write(index, self.forward(seen, level, conditions, index, visible)[1], at)

    def first(self) -> int:
        """Index of the first latent frame of the window."""
        return max(self.online.online.sink_latents, len(self.outputs) - self.online.online.window_latents)

    def recompute(self, conditions: Callable[[int, int], Conditions], draw: Draw) -> None:
        """Re-encode the window chunk by chunk, as it was generated; its first chunk may be partly evicted."""
        chunk, begin = self.online.chunk_latents, self.first()
        while begin < len(self.outputs):
            end = next(e for e in range(begin + 1, len(self.outputs) + 1) if (e - 1) % chunk == 0)
            self.append(torch.cat(self.outputs[begin:end], dim=2), conditions(begin, end), draw, begin)
            begin = end


@dataclass
class Recurrence:
    """Online LPM over the whole audio at once."""

    online: OnlineModel
    character: Character

    def __post_init__(self) -> None:
        self.backbone = Progress(self.online, self.character, self.online.backbone, self.online.online.backbone_levels)
        self.refiner = None
        if self.online.refiner is not None:
            levels = self.online.online.refiner_levels
            self.refiner = Progress(self.online, self.character, self.online.refiner, levels)

    def run(self, speak: Tensor, listen: Tensor, texts: list[str], seed: int) -> Tensor:
        """Latents [1, channels, k, h, w] for audio of 4000 k samples; texts are per chunk."""
        online, config = self.online, self.online.online
        own, partner = online.clip_features(speak), online.clip_features(listen)
        chunk, context = online.chunk_latents, online.config.context_latents
        draws = [drawing(torch.Generator().manual_seed(s)) for s in (seed, seed + REFINER_SEED)]
        for number, first in enumerate(range(1, 1 + speak.shape[1] // 4000, chunk)):
            text = online.text([texts[number]])

            def conditions(begin: int, end: int, text: Tensor | None = text) -> Conditions:
                span = slice(begin, end + context)
                return Conditions(text, own[:, span], partner[:, span])

            switched = texts[number] != (texts[number - 1] if number else "") and config.on_prompt_change == "recompute"
            clean = self.generate(self.backbone, conditions, first, switched, draws[0], None)
            if self.refiner is not None:
                self.generate(self.refiner, conditions, first, switched, draws[1], clean)
        return torch.cat((self.refiner or self.backbone).outputs[1:], dim=2)

    def generate(
        self, track: Progress, conditions: Callable[[int, int], Conditions], first: int, switched: bool, draw: Draw,
        coarse: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Generate one chunk from noise, or from a coarse one, and append it to the history."""
        config, chunk = self.online.online, self.online.chunk_latents
        if switched:
            track.recompute(conditions, draw)
        given = conditions(first, first + chunk)
        levels = config.backbone_sigmas if coarse is None else (config.refiner_sigma,)
        shape = (1, self.online.config.latent_channels, chunk, *self.character.image.shape[3:])
        clean, found = coarse, []
        for sigma in levels:
            x = draw(shape) if clean is None else (1 - sigma) * clean + sigma * draw(shape)
            velocity, pairs = track.forward(x, sigma, given, len(found) if config.history == "per_step" else 0)
            clean = x - sigma * velocity
            found.append(pairs)
        assert clean is not None
        if config.history == "per_step":
            for index, pairs in enumerate(found):
                track.write(index, pairs)
        else:
            track.append(clean, given, draw)
        before, after = len(track.outputs) - 1, len(track.outputs) - 1 + chunk
        track.outputs += clean.split(1, dim=2)
        if before < config.reference_refresh_latents <= after:
            absolute = self.character.image + track.outputs[-1] / self.online.codec.gain
            image = self.online.autoencoder.encode(self.online.autoencoder.decode(absolute))
            track.encode_references(torch.cat([image.transpose(1, 2), self.character.references[:, 1:]], dim=1))
        return clean


def drawing(generator: torch.Generator) -> Draw:
    return lambda shape: torch.randn(shape, generator=generator)
