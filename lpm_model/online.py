"""Online LPM: the causal, streaming generator, as sessions that step over their sound.

B batch, c latent frames of a chunk, n audio tokens a latent frame, P latent frames of audio context.
A call is endless: constant memory (static caches) and bounded positions (lpm_model.cache). How a chunk is made:
lpm_model.rollout.
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
    inference_device,
    join_characters,
    read_model_config,
    to_frames,
)
from lpm_model.checkpoint import load_weights, read_weights
from lpm_model.colour_drift import colour_state, correct_colour_drift
from lpm_model.config import (
    FRAMES_PER_LATENT,
    LATENT_FPS,
    SAMPLES_PER_LATENT,
    Lora,
    ModelConfig,
    OnlineConfig,
    from_mapping,
)
from lpm_model.digests import weights_digest
from lpm_model.dit import Conditions
from lpm_model.encoders.load import encoders_of
from lpm_model.float8 import to_float8
from lpm_model.lora import load_adapter, twin
from lpm_model.precision import native_type
from lpm_model.rollout import BlockLoop, Drawn, Noise, chunk_conditions
from lpm_model.state import Made, OnlineState, load_state, save_state

STAGES = ThreadPoolExecutor(2, thread_name_prefix="lpm-stage")
"""Runs refiner and decoder beside the backbone where a model is pipelined; its threads start on first use."""
REFINER = "refiner"
"""Stem of the refiner's weights, and the name of its adapter where it shares the backbone's."""
REFINER_SEED = 1 << 32
"""Added to a row's seed for the refiner's noise."""


class OnlineModel(BlockLoop):
    """A live character: sessions that step over their sound."""

    folder: Path | None = None
    """Where it was loaded from."""
    records: bool = False
    """Whether chunks are recorded and played back (see `accelerate`)."""

    @property
    def chunk_frames(self) -> int:
        """Video frames that one step makes."""
        return self.online.chunk_latents * FRAMES_PER_LATENT

    @property
    def chunk_samples(self) -> int:
        """Audio samples that one step consumes for each role."""
        return self.online.chunk_latents * SAMPLES_PER_LATENT

    @property
    def lookahead_samples(self) -> int:
        """Audio samples after the chunk that a step also wants to see."""
        return self.audio_encoder.lookahead_samples

    @cached_property
    def digest(self) -> str:
        """Names shapes and weights; a state goes on only with the model that made it."""
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
        """The state of sessions before their first chunk.

        Args:
            character: one for all rows, or one for each.
            batch: rows; None takes as many as there are characters.
            seed: of a row's noise, one for each row; a number is row 0's, and row r draws from seed + r.

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
        features = silence.expand(-1, self.kept_latents, -1, -1).contiguous()
        tail = torch.zeros(size, self.audio_encoder.past_samples, device=self.device)
        with torch.no_grad():
            image, decoder = self.autoencoder.decode_step(
                who.image.to(self.autoencoder.decoder_type), self.autoencoder.init_decode(size)
            )
        return OnlineState(
            cache=self.prime(who, static=True),
            refiner_cache=None if self.refiner is None else self.prime(who, static=True, refiner=True),
            character=who, speak=features, listen=features.clone(), speak_tail=tail, listen_tail=tail.clone(),
            decoder=_tidy(decoder), colour=colour_state(image),
            generators=tuple(torch.Generator().manual_seed(s) for s in seeds),
            refiner_generators=tuple(torch.Generator().manual_seed(s + REFINER_SEED) for s in seeds),
            texts=("",) * size,
        )  # fmt: skip

    @torch.inference_mode()
    def step(
        self, state: OnlineState, speak: Tensor, listen: Tensor, text: Sequence[str] | None = None
    ) -> tuple[Tensor, OnlineState]:
        """Make the next chunk.

        Args:
            state: from `init_state` or the step before; its buffers are reused.
            speak: [B, chunk_samples + lookahead_samples] in [-1, 1], own voice from the chunk's first sample.
            listen: the same for the other's voice.
            text: a prompt for each row.

        Returns:
            uint8 frames [B, chunk_frames, H, W, 3] and the next state. Pipelined, they are the frames of
            `pipeline_chunks` steps before, and [B, 0, H, W, 3] in the first of them.

        Raises:
            ValueError: audio of another length.
        """
        want = self.chunk_samples + self.lookahead_samples
        for name, audio in (("speak", speak), ("listen", listen)):
            if audio.shape != (state.cache.written.shape[0], want):
                raise ValueError(f"{name} audio has shape {tuple(audio.shape)}; a step wants [batch, {want}] samples")
        texts = ("",) * speak.shape[0] if text is None else tuple(text)
        if len(texts) != speak.shape[0]:
            raise ValueError(f"{len(texts)} prompts for {speak.shape[0]} rows: give one for each")
        spoken, speak_tail = self._features(state.speak, state.speak_tail, speak)
        heard, listen_tail = self._features(state.listen, state.listen_tail, listen)
        conditions = Conditions(text=self.text(texts), speak=spoken, listen=heard)
        switched = tuple(row for row, (old, new) in enumerate(zip(state.texts, texts, strict=True)) if old != new)
        frames, following = self._advance(state, conditions.map(self._own), switched)
        keep = slice(spoken.shape[1] - self.kept_latents, None)
        return frames, replace(
            following, speak=spoken[:, keep].contiguous(), listen=heard[:, keep].contiguous(),
            speak_tail=speak_tail, listen_tail=listen_tail, texts=texts,
        )  # fmt: skip

    def _own(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype)

    def _features(self, features: Tensor, tail: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Features of what is kept and the chunk [B, kept + c, n, width], and the samples that the next chunk wants."""
        window = torch.cat([tail, audio.to(tail.device)], dim=1)
        new = self.audio_encoder.encode(window).to(features.device)
        end = self.audio_encoder.past_samples + self.chunk_samples
        kept = window[:, end - self.audio_encoder.past_samples : end].contiguous()
        return torch.cat([features, new], dim=1), kept

    def _advance(self, state: OnlineState, heard: Conditions, switched: tuple[int, ...]) -> tuple[Tensor, OnlineState]:
        """Backbone, refiner and decoder, one after the other on one chunk, or at once on chunks behind each other."""
        if not self.online.pipelined:
            refined = self._refine_chunk(state, self._make_chunk(state, heard, switched))
            return self._show(state, refined)
        refining = None if state.made is None else STAGES.submit(self._refine_chunk, state, state.made)
        showing = None if state.refined is None else STAGES.submit(self._show, state, state.refined)
        made = self._make_chunk(state, heard, switched)
        following = replace(state, made=made, refined=None if refining is None else refining.result())
        if self.refiner is None:
            following = replace(state, made=None, refined=made.clean)
        if showing is None:
            return torch.zeros(made.clean.shape[0], 0, self.size_px, self.size_px, 3, dtype=torch.uint8), following
        frames, shown = showing.result()
        return frames, replace(following, decoder=shown.decoder, colour=shown.colour)

    @torch.inference_mode()
    def flush(self, state: OnlineState) -> tuple[Tensor, OnlineState]:
        """The frames that are still in a pipelined state [B, up to pipeline_chunks * chunk_frames, H, W, 3]."""
        out = []
        while state.refined is not None or state.made is not None:
            if state.refined is not None:
                frames, state = self._show(state, state.refined)
                out.append(frames)
            made = state.made
            state = replace(state, made=None, refined=None if made is None else self._refine_chunk(state, made))
        if not out:
            rows = state.cache.written.shape[0]
            return torch.zeros(rows, 0, self.size_px, self.size_px, 3, dtype=torch.uint8), state
        return torch.cat(out, dim=1), state

    @torch.inference_mode()
    def _make_chunk(self, state: OnlineState, heard: Conditions, switched: tuple[int, ...]) -> Made:
        """The backbone's chunk; its history goes on."""
        extra = self.kept_latents - self.config.context_latents
        if self.online.on_prompt_change == "recompute":
            self.recompute(state.cache, heard, switched, state.generators)
        noise = Noise(self._shape(state), state.generators, self.device)

        def make(heard: Conditions, noise: Noise | Drawn) -> Tensor:
            ((_, clean),) = self.rollout(state.cache, heard, extra + self.chunk_latents, noise, first=extra)
            return clean

        clean = self._played(state.cache, make, heard, noise, self.online.draws)
        self.refresh(state.cache, state.character, clean)
        return Made(clean=clean, heard=heard, switched=switched)

    @torch.inference_mode()
    def _refine_chunk(self, state: OnlineState, made: Made) -> Tensor:
        """The refiner's chunk, where there is a refiner; its history goes on."""
        cache = state.refiner_cache
        if cache is None:
            return made.clean
        if self.online.on_prompt_change == "recompute":
            self.recompute(cache, made.heard, made.switched, state.refiner_generators, refiner=True)
        span = self.kept_latents - self.config.context_latents
        noise = Noise(self._shape(state), state.refiner_generators, self.device)

        def make(heard: Conditions, noise: Noise | Drawn, coarse: Tensor) -> Tensor:
            heard = chunk_conditions(heard, self.config.context_latents, span, self.chunk_latents)
            heard = self._network(refiner=True)[0].hear(heard, coarse.shape[0], self.chunk_latents)
            refined = self.refine(cache, coarse, heard, noise)
            written = (0,) if self.online.history == "per_step" else ()
            self.remember(cache, refined, heard, noise, refiner=True, written=written)
            return refined

        refined = self._played(cache, make, made.heard, noise, 1, made.clean)
        self.refresh(cache, state.character, refined, refiner=True)
        return refined

    def accelerate(self, *, float8: bool = False, fused: bool = False) -> None:
        """Trade the first chunks' time, and some precision, for speed; before the first session.

        Args:
            float8: 8-bit products inside the blocks.
            fused: compiled blocks and, on a GPU, chunks played back as CUDA graphs once a session's window is full.
        """
        if float8:
            to_float8(self.networks.values())
        if fused:
            for network in self.networks.values():
                network.fuse()
            self.records = self.device.type == "cuda"

    def _played(
        self, cache: KVCache, make: Callable[..., Tensor], heard: Conditions, noise: Noise, draws: int, *more: Tensor
    ) -> Tensor:
        """What `make` gives of conditions, noise and more, from a recording where that is on and nothing else moves."""
        if not self.records or not cache.steady:
            return make(heard, noise, *more)
        names = [name for name in ("text", "speak", "listen") if getattr(heard, name) is not None]
        inputs = [*more, *(noise.draw() for _ in range(draws)), *(getattr(heard, name) for name in names)]

        def run(given: Sequence[Tensor]) -> Tensor:
            own, drawn = given[: len(more)], given[len(more) : len(more) + draws]
            present: dict[str, Any] = dict(zip(names, given[len(more) + draws :], strict=True))
            return make(Conditions(**present), Drawn(iter(drawn)), *own)

        return cache.recordings.play(" ".join(names), run, inputs)

    @torch.inference_mode()
    def _show(self, state: OnlineState, clean: Tensor) -> tuple[Tensor, OnlineState]:
        """Frames of a chunk."""
        latents = self.codec.decode(clean, state.character.image)
        video, decoder = self.autoencoder.decode_step(latents.to(self.autoencoder.decoder_type), state.decoder)
        colour = state.colour
        if self.online.colour_correction:
            video, colour = correct_colour_drift(
                video, colour, share=self.online.colour_correction, seconds=self.chunk_latents / LATENT_FPS,
                averaged_s=self.online.colour_correction_time_s,
            )  # fmt: skip
        return to_frames(video).cpu(), replace(state, decoder=_tidy(decoder), colour=colour, refined=None)

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
        """Start the rows where mask [B] is True again; the other rows are left as they are.

        Args:
            state: changed in place.
            mask: [B].
            character: for all those rows, or one for each row of the batch.
            seed: see `init_state`.

        Raises:
            ValueError: chunks are still under way.
        """
        if state.made is not None or state.refined is not None:
            raise ValueError("chunks are still under way in this pipelined state: flush it before a reset")
        mask = mask.to(self.device)
        fresh = self.init_state(character, mask.shape[0], seed)
        state.cache.take(mask, fresh.cache)
        if state.refiner_cache is not None and fresh.refiner_cache is not None:
            state.refiner_cache.take(mask, fresh.refiner_cache)
        state.character = state.character.replaced(mask, fresh.character)
        for name in ("speak", "listen", "speak_tail", "listen_tail"):
            setattr(state, name, _picked(mask, getattr(fresh, name), getattr(state, name)))
        pairs = zip(fresh.decoder.features, state.decoder.features, strict=True)
        state.decoder = DecoderState(features=tuple(_picked(mask, new, old) for new, old in pairs))
        state.colour = type(state.colour)(
            wanted=_picked(mask, fresh.colour.wanted, state.colour.wanted),
            recent=_picked(mask, fresh.colour.recent, state.colour.recent),
        )
        for name in ("generators", "refiner_generators", "texts"):
            rows = zip(mask.tolist(), getattr(fresh, name), getattr(state, name), strict=True)
            setattr(state, name, tuple(new if again else old for again, new, old in rows))

    def _about(self) -> dict[str, str]:
        """What a model must be to go on with a state of this one."""
        return {"model": self.digest, "type": str(self.dtype), "settings": repr(self.online)}

    def save_state(self, state: OnlineState, path: Path) -> None:
        """Write a state as safetensors; `load_state` goes on from it to the same bits."""
        save_state(state, path, self._about())

    def load_state(self, path: Path) -> OnlineState:
        """Read what `save_state` wrote.

        Raises:
            ValueError: no such file, a damaged one, or one of another model or other settings.
        """
        state = load_state(path, self._about(), self.chunk_latents)
        return state if self.device.type == "cpu" else state.to(self.device)


def _picked(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of new where mask [B] is True, else of old."""
    return torch.where(mask.view(-1, *[1] * (old.dim() - 1)), new, old)


def _tidy(decoder: DecoderState) -> DecoderState:
    """The same in one order of memory, so that a saved state goes on to the same bits."""
    return DecoderState(features=tuple(f.contiguous() for f in decoder.features))


def load_online(folder: Path, dtype: torch.dtype | None = None, device: str | None = None) -> OnlineModel:
    """Load an Online LPM folder for inference.

    Args:
        folder: written by distill.
        dtype: of the weights; None takes what the device is fast with.
        device: None takes a GPU where there is one.

    Raises:
        ValueError: not a folder of an Online LPM, or weights that do not fit.
    """
    config = read_model_config(folder)
    if "online" not in config:
        raise ValueError(
            f"{folder} is not an Online LPM (its config.json has no 'online' part): run `lpm distill` on it"
        )
    autoencoder = load_autoencoder(folder / "autoencoder")
    model = OnlineModel(
        from_mapping(ModelConfig, config["model"]),
        from_mapping(OnlineConfig, config["online"]),
        autoencoder,
        config["size_px"],
        encoders_of(folder),
        refiner="refiner_lora" not in config,
        device="meta",
    )
    model.folder = folder
    place = inference_device(device)
    kind = dtype if dtype is not None else native_type(place)
    for stem, network in model.networks.items():
        _load_part(network, folder / f"{stem}.safetensors", kind, place)
    if "refiner_lora" in config:
        lora = from_mapping(Lora, config["refiner_lora"], where="refiner_lora.")
        model.refiner = twin(model.backbone, REFINER, lora)
        weights = folder / f"{REFINER}.safetensors"
        load_adapter(model.refiner, read_weights(weights), weights)
    model.to(place)
    if kind != torch.float32:
        autoencoder.decode_in(kind)
    return model.eval().requires_grad_(False)


def _load_part(network: nn.Module, weights: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Give a network that has no memory yet the weights of a file."""
    if not weights.is_file():
        raise ValueError(f"{weights} is missing: run `lpm distill` again")
    load_weights(network, read_weights(weights), weights)
    network.to(device, dtype)
