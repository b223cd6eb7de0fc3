"""Online LPM: the causal, streaming generator, as sessions that step over their audio.

B batch, c latent frames of a chunk, n audio tokens a latent frame, P latent frames of audio context.
Memory is constant (static caches) and positions are bounded (lpm_model.cache), so that a call can run indefinitely.
lpm_model.rollout generates the chunks.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpm_model.autoencoder.api import DecoderState
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.cache import KVCache
from lpm_model.character import (
    Character,
    config_part,
    inference_device,
    join_characters,
    read_model_config,
    to_frames,
)
from lpm_model.checkpoint import load_weights, read_weights
from lpm_model.colour_drift import correct_colour_drift, init_colour_state
from lpm_model.config import (
    FRAMES_PER_LATENT,
    LATENT_FPS,
    SAMPLES_PER_LATENT,
    Lora,
    ModelConfig,
    OnlineConfig,
)
from lpm_model.digests import weights_digest
from lpm_model.dit import Conditions
from lpm_model.encoders.load import find_encoders
from lpm_model.float8 import to_float8
from lpm_model.lora import clone_with_adapter, load_adapter
from lpm_model.precision import native_dtype
from lpm_model.rollout import BlockLoop, DrawnNoise, Noise, NoiseSource, chunk_conditions
from lpm_model.state import ChunkOutput, OnlineState, load_state, save_state

STAGES = ThreadPoolExecutor(2, thread_name_prefix="lpm-stage")
"""Runs refiner and decoder of a pipelined model in parallel with the backbone; threads start on first use."""
REFINER = "refiner"
"""Stem of the refiner's weights, and the name of its adapter if it shares the backbone's weights."""
REFINER_SEED = 1 << 32
"""Added to a row's seed for the refiner's noise."""


class OnlineModel(BlockLoop):
    """A live character: sessions that step over their audio."""

    folder: Path | None = None
    """Folder that the model was loaded from."""
    use_cuda_graphs: bool = False
    """Whether chunks are captured as CUDA graphs and replayed (see `accelerate`)."""

    @property
    def chunk_frames(self) -> int:
        """Video frames that one step generates."""
        return self.online.chunk_latents * FRAMES_PER_LATENT

    @property
    def chunk_samples(self) -> int:
        """Audio samples that one step consumes for each role."""
        return self.online.chunk_latents * SAMPLES_PER_LATENT

    @property
    def lookahead_samples(self) -> int:
        """Audio samples after the chunk that a step needs as well."""
        return self.audio_encoder.lookahead_samples

    @cached_property
    def digest(self) -> str:
        """Digest of shapes and weights; a state resumes only with the model that saved it."""
        if self.folder is not None:
            return weights_digest(self.folder)
        total = hashlib.sha256(repr((self.config, self.online, self.autoencoder.digest)).encode())
        for network in self.networks.values():
            for name, value in sorted(network.state_dict().items()):
                total.update(name.encode() + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()

    def init_state(
        self, character: Character | Sequence[Character], batch: int | None = None, seed: int | Sequence[int] = 0
    ) -> OnlineState:
        """Create the state of sessions before their first chunk.

        Args:
            character: one for all rows, or one for each.
            batch: number of rows; None = the number of characters.
            seed: seeds of the noise, one for each row; a single number seeds row r with seed + r.

        Raises:
            ValueError: numbers of characters, rows and seeds that do not fit.
        """
        given = [character] if isinstance(character, Character) else list(character)
        size = len(given) if batch is None else batch
        seeds = [seed + row for row in range(size)] if isinstance(seed, int) else list(seed)
        if len(given) not in (1, size) or len(seeds) != size:
            raise ValueError(f"{len(given)} characters and {len(seeds)} seeds for {size} rows: give one for each row")
        who = given[0].rows(size) if len(given) == 1 else join_characters(given)
        who = Character(*(x.to(self.device) for x in (who.image, who.references, who.positions)))
        silence = self.clip_features(torch.zeros(size, SAMPLES_PER_LATENT, device=self.device))[:, :1]
        features = silence.expand(-1, self.audio_history_latents, -1, -1).contiguous()
        tail = torch.zeros(size, self.audio_encoder.past_samples, device=self.device)
        with torch.no_grad():
            image, decoder = self.autoencoder.decode_step(
                who.image.to(self.autoencoder.decoder_dtype), self.autoencoder.init_decode(size)
            )
        return OnlineState(
            cache=self.prefill(who, static=True),
            refiner_cache=None if self.refiner is None else self.prefill(who, static=True, refiner=True),
            character=who, speak=features, listen=features.clone(), speak_tail=tail, listen_tail=tail.clone(),
            decoder=_contiguous(decoder), colour=init_colour_state(image),
            generators=tuple(torch.Generator().manual_seed(s) for s in seeds),
            refiner_generators=tuple(torch.Generator().manual_seed(s + REFINER_SEED) for s in seeds),
            texts=("",) * size,
        )  # fmt: skip

    @torch.inference_mode()
    def step(
        self, state: OnlineState, speak: Tensor, listen: Tensor, text: Sequence[str] | None = None
    ) -> tuple[Tensor, OnlineState]:
        """Generate the next chunk.

        Args:
            state: from `init_state` or the step before; its buffers are reused.
            speak: [B, chunk_samples + lookahead_samples] in [-1, 1], the character's own audio from the chunk's first
                sample on.
            listen: the same of the partner's audio.
            text: a prompt for each row.

        Returns:
            uint8 frames [B, chunk_frames, H, W, 3] and the next state. Pipelined, they are the frames of
            `pipeline_chunks` steps before, and [B, 0, H, W, 3] in the first of them.

        Raises:
            ValueError: audio of another length.
        """
        needed = self.chunk_samples + self.lookahead_samples
        for name, audio in (("speak", speak), ("listen", listen)):
            if audio.shape != (state.cache.written.shape[0], needed):
                raise ValueError(f"{name} audio has shape {tuple(audio.shape)}; a step needs [batch, {needed}] samples")
        texts = ("",) * speak.shape[0] if text is None else tuple(text)
        if len(texts) != speak.shape[0]:
            raise ValueError(f"{len(texts)} prompts for {speak.shape[0]} rows: give one for each")
        own, speak_tail = self._features(state.speak, state.speak_tail, speak)
        partner, listen_tail = self._features(state.listen, state.listen_tail, listen)
        conditions = Conditions(text=self.text(texts), speak=own, listen=partner)
        changed = tuple(row for row, (old, new) in enumerate(zip(state.texts, texts, strict=True)) if old != new)
        frames, following = self._advance(state, conditions.map(self._cast), changed)
        recent = slice(own.shape[1] - self.audio_history_latents, None)
        return frames, replace(
            following, speak=own[:, recent].contiguous(), listen=partner[:, recent].contiguous(),
            speak_tail=speak_tail, listen_tail=listen_tail, texts=texts,
        )  # fmt: skip

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype)

    def _features(self, features: Tensor, tail: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the chunk's audio and append it to the features of the past.

        Args:
            features: [B, P, n, width] of the latent frames before the chunk.
            tail: [B, past_samples] samples before the chunk.
            audio: [B, chunk_samples + lookahead_samples].

        Returns:
            Features [B, P + c, n, width], and the tail [B, past_samples] of the next chunk.
        """
        window = torch.cat([tail, audio.to(tail.device)], dim=1)
        new = self.audio_encoder.encode(window).to(features.device)
        end = self.audio_encoder.past_samples + self.chunk_samples
        following = window[:, end - self.audio_encoder.past_samples : end].contiguous()
        return torch.cat([features, new], dim=1), following

    def _advance(
        self, state: OnlineState, conditions: Conditions, changed: tuple[int, ...]
    ) -> tuple[Tensor, OnlineState]:
        """Run backbone, refiner and decoder, in sequence on one chunk, or in parallel on successive chunks."""
        if not self.online.pipelined:
            refined = self._refine_chunk(state, self._make_chunk(state, conditions, changed))
            return self._decode(state, refined)
        waiting, latents = state.awaiting_refiner, state.awaiting_decoder
        refining = None if waiting is None else STAGES.submit(self._refine_chunk, state, waiting)
        decoding = None if latents is None else STAGES.submit(self._decode, state, latents)
        output = self._make_chunk(state, conditions, changed)
        refined_latents = None if refining is None else refining.result()
        following = replace(state, awaiting_refiner=output, awaiting_decoder=refined_latents)
        if self.refiner is None:
            following = replace(state, awaiting_refiner=None, awaiting_decoder=output.clean)
        if decoding is None:
            return self._no_frames(output.clean.shape[0]), following
        frames, decoded = decoding.result()
        return frames, replace(following, decoder=decoded.decoder, colour=decoded.colour)

    def _no_frames(self, rows: int) -> Tensor:
        return torch.zeros(rows, 0, self.size_px, self.size_px, 3, dtype=torch.uint8)

    @torch.inference_mode()
    def flush(self, state: OnlineState) -> tuple[Tensor, OnlineState]:
        """Finish the chunks in flight of a pipelined state.

        Returns:
            uint8 frames [B, up to pipeline_chunks * chunk_frames, H, W, 3], and the state without chunks in flight.
        """
        out = []
        while state.awaiting_decoder is not None or state.awaiting_refiner is not None:
            if state.awaiting_decoder is not None:
                frames, state = self._decode(state, state.awaiting_decoder)
                out.append(frames)
            waiting = state.awaiting_refiner
            refined = None if waiting is None else self._refine_chunk(state, waiting)
            state = replace(state, awaiting_refiner=None, awaiting_decoder=refined)
        if not out:
            return self._no_frames(state.cache.written.shape[0]), state
        return torch.cat(out, dim=1), state

    @torch.inference_mode()
    def _make_chunk(self, state: OnlineState, conditions: Conditions, changed: tuple[int, ...]) -> ChunkOutput:
        """Generate the backbone's chunk and append it to its history."""
        first = self.audio_history_latents - self.config.context_latents
        if self.online.on_prompt_change == "recompute":
            self.recompute_windows(state.cache, conditions, changed, state.generators)
        noise = Noise(self._shape(state), state.generators, self.device)

        def make(conditions: Conditions, noise: NoiseSource) -> Tensor:
            ((_, clean),) = self.rollout(state.cache, conditions, first + self.chunk_latents, noise, first=first)
            return clean

        clean = self._run(state.cache, make, conditions, noise, self.online.noise_draws)
        self.refresh_reference(state.cache, state.character, clean)
        return ChunkOutput(clean=clean, conditions=conditions, changed_rows=changed)

    @torch.inference_mode()
    def _refine_chunk(self, state: OnlineState, output: ChunkOutput) -> Tensor:
        """Generate the refiner's chunk [B, channels, c, h, w], appended to its history; without one, the backbone's."""
        cache = state.refiner_cache
        if cache is None:
            return output.clean
        if self.online.on_prompt_change == "recompute":
            rows, generators = output.changed_rows, state.refiner_generators
            self.recompute_windows(cache, output.conditions, rows, generators, refiner=True)
        first = self.audio_history_latents - self.config.context_latents
        noise = Noise(self._shape(state), state.refiner_generators, self.device)

        def make(conditions: Conditions, noise: NoiseSource, coarse: Tensor) -> Tensor:
            given = chunk_conditions(conditions, self.config.context_latents, first, self.chunk_latents)
            given = self._network(refiner=True)[0].with_cross_kv(given, coarse.shape[0], self.chunk_latents)
            refined = self.refine(cache, coarse, given, noise)
            written = (0,) if self.online.history == "per_step" else ()
            self.append(cache, refined, given, noise, refiner=True, written_levels=written)
            return refined

        refined = self._run(cache, make, output.conditions, noise, 1, output.clean)
        self.refresh_reference(cache, state.character, refined, refiner=True)
        return refined

    def accelerate(self, *, float8: bool = False, compile: bool = False) -> None:  # noqa: A002 - named as in torch
        """Trade start-up time, and some precision, for speed; call it before the first session.

        Args:
            float8: FP8 matmuls inside the blocks.
            compile: compiled blocks and, on a GPU, chunks replayed as CUDA graphs once a session's window is full.
        """
        if float8:
            to_float8(self.networks.values())
        if compile:
            for network in self.networks.values():
                network.set_execution(replace(network.execution, compiled=True))
            self.use_cuda_graphs = self.device.type == "cuda"

    def _run(
        self,
        cache: KVCache,
        make: Callable[..., Tensor],
        conditions: Conditions,
        noise: NoiseSource,
        draws: int,
        *more: Tensor,
    ) -> Tensor:
        """Run `make(conditions, noise, *more)`, through the cache's CUDA graphs once they can be captured.

        Args:
            cache: read and written by `make`.
            make: generates a chunk [B, channels, c, h, w].
            conditions: of the chunk.
            noise: drawn on the host, before the graph is replayed.
            draws: number of noise tensors that `make` draws.
            more: further inputs of `make`.
        """
        if not self.use_cuda_graphs or not cache.capturable:
            return make(conditions, noise, *more)
        names = [name for name in ("text", "speak", "listen") if getattr(conditions, name) is not None]
        inputs = [*more, *(noise.draw() for _ in range(draws)), *(getattr(conditions, name) for name in names)]

        def run(static: Sequence[Tensor]) -> Tensor:
            own, drawn = static[: len(more)], static[len(more) : len(more) + draws]
            present: dict[str, Any] = dict(zip(names, static[len(more) + draws :], strict=True))
            return make(Conditions(**present), DrawnNoise(iter(drawn)), *own)

        return cache.prepared.graphs.run(" ".join(names), run, inputs)

    @torch.inference_mode()
    def _decode(self, state: OnlineState, clean: Tensor) -> tuple[Tensor, OnlineState]:
        """Decode a chunk [B, channels, c, h, w] to uint8 frames [B, chunk_frames, H, W, 3]."""
        latents = self.codec.decode(clean, state.character.image)
        video, decoder = self.autoencoder.decode_step(latents.to(self.autoencoder.decoder_dtype), state.decoder)
        colour = state.colour
        if self.online.colour_correction:
            video, colour = correct_colour_drift(
                video, colour, strength=self.online.colour_correction, seconds=self.chunk_latents / LATENT_FPS,
                time_constant_s=self.online.colour_correction_time_s,
            )  # fmt: skip
        return to_frames(video).cpu(), replace(
            state, decoder=_contiguous(decoder), colour=colour, awaiting_decoder=None
        )

    def _shape(self, state: OnlineState) -> tuple[int, ...]:
        rows, channels, _, height, width = state.character.image.shape
        return rows, channels, self.chunk_latents, height, width

    def reset(
        self,
        state: OnlineState,
        mask: Tensor,
        character: Character | Sequence[Character],
        seed: int | Sequence[int] = 0,
    ) -> None:
        """Restart the rows where mask [B] is True; the other rows do not change.

        Args:
            state: changed in place.
            mask: [B].
            character: for all those rows, or one for each row of the batch.
            seed: see `init_state`.

        Raises:
            ValueError: chunks are still in flight.
        """
        if state.awaiting_refiner is not None or state.awaiting_decoder is not None:
            raise ValueError("chunks are still in flight in this pipelined state: flush it before a reset")
        mask = mask.to(self.device)
        fresh = self.init_state(character, mask.shape[0], seed)
        state.cache.replace_rows(mask, fresh.cache)
        if state.refiner_cache is not None and fresh.refiner_cache is not None:
            state.refiner_cache.replace_rows(mask, fresh.refiner_cache)
        state.character = state.character.with_rows(mask, fresh.character)
        for name in ("speak", "listen", "speak_tail", "listen_tail"):
            setattr(state, name, _select_rows(mask, getattr(fresh, name), getattr(state, name)))
        pairs = zip(fresh.decoder.features, state.decoder.features, strict=True)
        state.decoder = DecoderState(features=tuple(_select_rows(mask, new, old) for new, old in pairs))
        state.colour = type(state.colour)(
            target=_select_rows(mask, fresh.colour.target, state.colour.target),
            average=_select_rows(mask, fresh.colour.average, state.colour.average),
        )
        for name in ("generators", "refiner_generators", "texts"):
            rows = zip(mask.tolist(), getattr(fresh, name), getattr(state, name), strict=True)
            setattr(state, name, tuple(new if restart else old for restart, new, old in rows))

    def _compatibility(self) -> dict[str, str]:
        """Properties that a model and a state must share."""
        return {"model": self.digest, "type": str(self.dtype), "settings": repr(self.online)}

    def save_state(self, state: OnlineState, path: Path) -> None:
        """Write a state as safetensors; `load_state` resumes from it to the same bits."""
        save_state(state, path, self._compatibility())

    def load_state(self, path: Path) -> OnlineState:
        """Load what `save_state` wrote.

        Raises:
            ValueError: the file is missing, damaged, or of another model or other settings.
        """
        state = load_state(path, self._compatibility(), self.chunk_latents)
        return state if self.device.type == "cpu" else state.to(self.device)


def _select_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of new [B, ...] where mask [B] is True, else of old [B, ...]."""
    return torch.where(mask.view(-1, *[1] * (old.dim() - 1)), new, old)


def _contiguous(decoder: DecoderState) -> DecoderState:
    """Return the same in contiguous memory, so that a saved state resumes to the same bits."""
    return DecoderState(features=tuple(f.contiguous() for f in decoder.features))


def load_online(folder: Path, dtype: torch.dtype | None = None, device: str | None = None) -> OnlineModel:
    """Load an Online LPM folder for inference.

    Args:
        folder: written by distill.
        dtype: data type of the weights; None = the device's native type.
        device: None selects a GPU if there is one.

    Raises:
        ValueError: the folder holds no Online LPM, or weights that do not fit.
    """
    config = read_model_config(folder)
    if "online" not in config:
        raise ValueError(
            f"{folder} is not an Online LPM (its config.json has no 'online' part): run `lpm distill` on it"
        )
    autoencoder = load_autoencoder(folder / "autoencoder")
    model = OnlineModel(
        config_part(ModelConfig, config, "model", folder),
        config_part(OnlineConfig, config, "online", folder),
        autoencoder,
        config["size_px"],
        find_encoders(folder),
        refiner="refiner_lora" not in config,
        device="meta",
    )
    model.folder = folder
    place = inference_device(device)
    kind = dtype if dtype is not None else native_dtype(place)
    for stem, network in model.networks.items():
        _load_part(network, folder / f"{stem}.safetensors", kind, place)
    if "refiner_lora" in config:
        lora = config_part(Lora, config, "refiner_lora", folder)
        model.refiner = clone_with_adapter(model.backbone, REFINER, lora)
        weights = folder / f"{REFINER}.safetensors"
        load_adapter(model.refiner, read_weights(weights), weights)
    model.to(place)
    if kind != torch.float32:
        autoencoder.set_decoder_dtype(kind)
    return model.eval().requires_grad_(False)


def _load_part(network: nn.Module, weights: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Load the weights of a file into a network on the meta device."""
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: run `lpm distill` again")
    load_weights(network, read_weights(weights), weights)
    network.to(device, dtype)
