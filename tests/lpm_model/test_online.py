"""The streaming model: streaming equals offline, causality, rows, resets, bounded state."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpm_model.character import Character, to_frames
from lpm_model.config import OnlineConfig
from lpm_model.dit import Conditions
from lpm_model.online import OnlineModel
from lpm_model.rollout import Noise, chunk_conditions
from lpm_model.state import OnlineState, flatten
from tests.lpm_model.recurrence import Recurrence, Segment, joint_pass
from tests.lpm_model.tiny import conditions, normal, online_config, online_model, person, voice

TEXT = ["she smiles"]


def chunks(online: OnlineModel, audio: Tensor) -> list[Tensor]:
    """Audio of each step, silence after the end of the file."""
    padded = torch.nn.functional.pad(audio, (0, online.lookahead_samples))
    size = online.chunk_samples
    return [padded[:, i : i + size + online.lookahead_samples] for i in range(0, audio.shape[1], size)]


def stream(
    online: OnlineModel, state: OnlineState, speak: Tensor, listen: Tensor, texts: Sequence[str] = TEXT
) -> Tensor:
    """Frames [B, T, H, W, 3] of whole audio files; texts for each chunk, the last one for all that follow."""
    made = []
    for number, (a, b) in enumerate(zip(chunks(online, speak), chunks(online, listen), strict=True)):
        text = [texts[min(number, len(texts) - 1)]] * speak.shape[0] if texts else None
        frames, state = online.step(state, a, b, text)
        made.append(frames)
    return torch.cat([*made, online.flush(state)[0]], dim=1)


@pytest.fixture
def latents_of(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects the clean latents of every step, which rounding to bytes would hide."""
    seen: list[Tensor] = []
    decode = OnlineModel._decode

    def collect(self: OnlineModel, state: OnlineState, clean: Tensor) -> tuple[Tensor, OnlineState]:
        seen.append(clean.clone())
        return decode(self, state, clean)

    monkeypatch.setattr(OnlineModel, "_decode", collect)
    return seen


def test_streaming_equals_recurrence(latents_of: list[Tensor]) -> None:
    online = online_model(online_config(chunk_latents=3, window_latents=4))
    speak, listen = voice(4000 * 18, 1), voice(4000 * 18, 2)
    frames = stream(online, online.init_state(person(), seed=5), speak, listen)
    expected = Recurrence(online, person()).run(speak, listen, TEXT * 6, seed=5)
    assert torch.allclose(torch.cat(latents_of, dim=2), expected, atol=1e-4)
    # The recurrence is in residuals to the image (lpm_model.latent_codec); decoded here by hand.
    absolute = person().image + expected / online.codec.gain
    whole = online.autoencoder.decode(torch.cat([person().image, absolute], dim=2))[:, :, 1:]
    assert int((frames.int() - to_frames(whole).int()).abs().max()) <= 1


@st.composite
def plans(draw: st.DrawFn) -> tuple[OnlineConfig, int, list[str]]:
    """A config, a number of chunks, and a text for each chunk."""
    chunk = draw(st.sampled_from([1, 1, 3, 6]))
    config = online_config(
        chunk_latents=chunk,
        sink_latents=draw(st.integers(0, 3)),
        window_latents=draw(st.integers(chunk, chunk + 2)),
        history_sigma=draw(st.sampled_from([0.0, 0.25])),
        backbone_sigmas=draw(st.sampled_from([(1.0,), (1.0, 0.6)])),
        refiner_sigma=draw(st.sampled_from([0.0, 0.3])),
        history=draw(st.sampled_from(["pass", "per_step"])),
        on_prompt_change=draw(st.sampled_from(["keep", "recompute"])),
        pipelined=draw(st.booleans()),
        reference_refresh_latents=draw(st.sampled_from([0, 2])),
    )
    count = draw(st.integers(1, 10 // chunk + 1))
    texts = draw(st.lists(st.sampled_from(["", "she smiles", "he nods"]), min_size=count, max_size=count))
    return config, count, texts


@given(plans(), st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streaming_equals_recurrence_for_any_config(
    latents_of: list[Tensor], plan: tuple[OnlineConfig, int, list[str]], seed: int
) -> None:
    config, count, texts = plan
    online, size = online_model(config), 4000 * config.chunk_latents
    speak, listen = voice(size * count, seed), voice(size * count, seed + 1)
    latents_of.clear()
    frames = stream(online, online.init_state(person(), seed=seed), speak, listen, texts)
    assert frames.shape[1] == 4 * config.chunk_latents * count
    expected = Recurrence(online, person()).run(speak, listen, texts, seed)
    assert torch.allclose(torch.cat(latents_of, dim=2), expected, atol=1e-4)


def test_streaming_equals_recurrence_without_history_noise(latents_of: list[Tensor]) -> None:
    online = online_model(online_config(history_sigma=0.0, backbone_sigmas=(1.0,)))
    speak, listen = voice(4000 * 7, 1), voice(4000 * 7, 2)
    stream(online, online.init_state(person(), seed=5), speak, listen)
    reference = Recurrence(online, person()).backbone
    generator = torch.Generator().manual_seed(5)
    features = online.clip_features(speak), online.clip_features(listen)
    for first, got in enumerate(latents_of, 1):
        span = slice(first, first + online.config.context_latents + 1)
        conditions_of_chunk = Conditions(online.text(TEXT), features[0][:, span], features[1][:, span])
        x = torch.randn(got.shape, generator=generator)
        clean = x - reference.forward(x, 1.0, conditions_of_chunk)[0]
        assert torch.allclose(got, clean, atol=1e-4)
        reference.write(0, reference.forward(clean, 0.0, conditions_of_chunk)[1])
        reference.outputs.append(clean)


def test_cached_chunk_equals_one_masked_pass(online: OnlineModel) -> None:
    """Image and references attend to each other, and the chunk to all, in one pass without a cache."""
    who, given = person(), conditions(1)
    noisy = normal(1, 16, 1, 4, 4, seed=8)
    got = online.denoise(online.prefill(who), noisy, 0, given.without("references"))
    segments = [
        Segment(who.image, [0], 0.0),
        Segment(who.references.transpose(1, 2), who.positions.tolist(), 0.0, crosses=False),
        Segment(noisy, [1], 1.0, given.text, given.speak, given.listen),
    ]
    sees = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    out, _ = joint_pass(online.backbone, who.image, segments, sees)
    assert torch.allclose(got, noisy - out[2], atol=1e-5)


def test_recurrence_equals_bidirectional_pass(online: OnlineModel) -> None:
    given, latents = conditions(3), normal(1, 16, 3, 4, 4, seed=8)
    assert given.references is not None
    segments = [
        Segment(latents, [0, 1, 2], 0.4, given.text, given.speak, given.listen),
        Segment(given.references.transpose(1, 2), [-1, -2], 0.0, crosses=False),
    ]
    out, _ = joint_pass(online.backbone, latents[:, :, :1], segments, torch.ones(2, 2, dtype=torch.bool))
    assert torch.allclose(out[0], online.backbone(latents, torch.full((1, 3), 0.4), given), atol=1e-5)


def test_append_does_not_depend_on_earlier_forward(online: OnlineModel) -> None:
    """Writing a chunk must not change keys that the same pass still reads, even when the ring is full."""
    given = conditions(1).without("references")
    quiet = online_model(online_config(history_sigma=0.0))
    caches = [quiet.prefill(person()) for _ in range(2)]
    noise = Noise((1, 16, 1, 4, 4), torch.Generator().manual_seed(0))
    for step in range(8):
        clean = normal(1, 16, 1, 4, 4, seed=step)
        quiet.denoise(caches[0], clean, 0, given)
        for cache in caches:
            quiet.append(cache, clean, given, noise)
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)


@pytest.mark.parametrize("role", ["speak", "listen"])
def test_audio_beyond_lookahead_does_not_change_earlier_frames(online: OnlineModel, role: str) -> None:
    voices = {"speak": voice(4000 * 7, 1), "listen": voice(4000 * 7, 2)}
    before = stream(online, online.init_state(person()), voices["speak"], voices["listen"])
    border = 4000 * 3 + online.lookahead_samples
    later, sooner = voices[role].clone(), voices[role].clone()
    later[:, border:] = voice(later.shape[1] - border, 9)
    sooner[:, border - 1500 :] = voice(sooner.shape[1] - border + 1500, 9)
    after = stream(online, online.init_state(person()), **{**voices, role: later})
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])
    assert not torch.equal(
        before[:, :12], stream(online, online.init_state(person()), **{**voices, role: sooner})[:, :12]
    )


def characters_at(kinds: Sequence[Sequence[int]]) -> list[Character]:
    """Return characters with references at these positions."""
    people = []
    for row, positions in enumerate(kinds):
        someone = person(row)
        references = normal(1, len(positions), 16, 4, 4, seed=70 + row)
        people.append(Character(someone.image, references, torch.tensor(positions)))
    return people


@given(
    kinds=st.lists(st.sampled_from([[-1], [-1, -2], [-1, -6, -3]]), min_size=2, max_size=3),
    starts=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    texts=st.lists(st.sampled_from(["", "she smiles"]), min_size=3, max_size=3),
    settled=st.sampled_from(["keep", "recompute"]),
    refiner=st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batched_row_equals_single_row(
    latents_of: list[Tensor], kinds: list[list[int]], starts: list[int], texts: list[str], settled: str, refiner: float
) -> None:
    """Rows are independent of the others and of their positions, and restart at different times."""
    online = online_model(online_config(on_prompt_change=settled, refiner_sigma=refiner))
    people, rows, count = characters_at(kinds), len(kinds), 8
    audio = voice(4000 * count + online.lookahead_samples, 1, batch=rows)
    state = online.init_state(people, seed=3)
    latents_of.clear()
    for number in range(count):
        again = torch.tensor([number == start and number > 0 for start in starts[:rows]])
        if bool(again.any()):
            online.reset(state, again, people, seed=3)
        part = audio[:, 4000 * number : 4000 * (number + 1) + online.lookahead_samples]
        prompts = [text if number > 4 else "" for text in texts[:rows]]
        _, state = online.step(state, part, part.flip(0), prompts)
    together = torch.cat(latents_of, dim=2)
    assert state.position.tolist() == [1 + count - start for start in starts[:rows]]
    for row, start in enumerate(starts[:rows]):
        alone = online.init_state(people[row], seed=3 + row)
        latents_of.clear()
        for number in range(start, count):
            part = audio[:, 4000 * number : 4000 * (number + 1) + online.lookahead_samples]
            own, other = part[row : row + 1], part[rows - 1 - row : rows - row]
            _, alone = online.step(alone, own, other, [texts[row] if number > 4 else ""])
        assert torch.allclose(torch.cat(latents_of, dim=2), together[row : row + 1, :, start:], atol=1e-4)


def test_reset_restarts_only_masked_rows(online: OnlineModel) -> None:
    state = online.init_state(person(), batch=3)
    for index in range(6):
        audio = voice(online.chunk_samples + online.lookahead_samples, index, batch=3)
        _, state = online.step(state, audio, audio, None)
    before = copy.deepcopy(state.cache)
    kept = {name: getattr(state, name).clone() for name in ("speak", "listen", "speak_tail", "listen_tail")}
    features = state.decoder.features[0].clone()
    others = [state.generators[row].get_state() for row in (0, 2)]
    online.reset(state, torch.tensor([False, True, False]), person(7))
    new = online.init_state(person(7), batch=3)
    draws = [state.generators[row].get_state() for row in range(3)]
    assert state.position.tolist() == [7, 1, 7]
    for row in (0, 2):
        assert torch.equal(state.cache.keys[:, row], before.keys[:, row])
        assert torch.equal(state.cache.reference_values[:, row], before.reference_values[:, row])
        assert torch.equal(state.decoder.features[0][row], features[row])
        assert all(torch.equal(getattr(state, name)[row], value[row]) for name, value in kept.items())
    assert torch.equal(state.cache.keys[:, 1], new.cache.keys[:, 1])
    assert torch.equal(state.cache.reference_keys[:, 1], new.cache.reference_keys[:, 1])
    assert torch.equal(state.decoder.features[0][1], new.decoder.features[0][1])
    assert all(torch.equal(getattr(state, name)[1], getattr(new, name)[1]) for name in kept)
    assert all(torch.equal(a, b) for a, b in zip(others, (draws[0], draws[2]), strict=True))
    assert torch.equal(draws[1], new.generators[1].get_state())


@pytest.mark.parametrize("brought", [[-1, -2, -6], [-3]])
def test_reset_accepts_more_or_fewer_references(brought: list[int], latents_of: list[Tensor]) -> None:
    online = online_model(online_config(refiner_sigma=0.3, reference_refresh_latents=3))
    stays, new = characters_at([[-1, -2], brought])
    audio, state = voice(4000 * 10, 1, batch=2), online.init_state(stays, batch=2, seed=[5, 6])
    parts = chunks(online, audio)
    for number, part in enumerate(parts):
        if number == 4:
            online.reset(state, torch.tensor([False, True]), new, seed=[0, 9])
        _, state = online.step(state, part, part, None)
    both = torch.cat(latents_of, dim=2)
    for who, row, start, seed in ((stays, 0, 0, 5), (new, 1, 4, 9)):
        latents_of.clear()
        alone = online.init_state(who, seed=seed)
        for part in parts[start:]:
            _, alone = online.step(alone, part[row : row + 1], part[row : row + 1], None)
        assert torch.allclose(torch.cat(latents_of, dim=2), both[row : row + 1, :, start:], atol=1e-4)


@pytest.mark.parametrize("changes", [
    {}, {"history": "per_step", "chunk_latents": 3},
    {"refiner_sigma": 0.3, "pipelined": True, "colour_correction": 0.5},
    {"refiner_sigma": 0.3, "on_prompt_change": "recompute", "reference_refresh_latents": 3},
])  # fmt: skip
@pytest.mark.parametrize("stop", [1, 4])
def test_loaded_state_resumes_to_the_same_bits(changes: dict[str, Any], stop: int, tmp_path: Path) -> None:
    online = online_model(online_config(**changes))
    audio = voice(online.chunk_samples * 8, 1, batch=2)
    parts, state = chunks(online, audio), online.init_state(characters_at([[-1], [-1, -2]]), seed=4)
    frames = []
    for number, part in enumerate(parts):
        if number == stop:
            online.save_state(state, tmp_path / "state")
        made, state = online.step(state, part, part.flip(0), ["", "she smiles"] if number % 3 else None)
        frames.append(made)
    again = online_model(online_config(**changes)).load_state(tmp_path / "state")
    assert not list(tmp_path.glob("*.part"))
    for number, part in list(enumerate(parts))[stop:]:
        made, again = online.step(again, part, part.flip(0), ["", "she smiles"] if number % 3 else None)
        assert torch.equal(made, frames[number])
    left, right = flatten(state), flatten(again)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_load_state_rejects_other_model(online: OnlineModel, tmp_path: Path) -> None:
    path = tmp_path / "state"
    online.save_state(online.init_state(person()), path)
    other = online_model()
    with torch.no_grad():
        other.backbone.head.bias.add_(1)
    for model, part in ((other, "model"), (online_model(online_config(window_latents=4)), "model")):
        with pytest.raises(ValueError, match=f"state of another model.*{part}"):
            model.load_state(path)
    with pytest.raises(ValueError, match="missing"):
        online.load_state(tmp_path / "none")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged"):
        online.load_state(path)


def test_reset_requires_flushed_pipeline() -> None:
    online = online_model(online_config(pipelined=True))
    audio = torch.zeros(1, online.chunk_samples + online.lookahead_samples)
    frames, state = online.step(online.init_state(person()), audio, audio)
    assert frames.shape == (1, 0, 32, 32, 3)
    with pytest.raises(ValueError, match="flush"):
        online.reset(state, torch.tensor([True]), person())
    frames, state = online.flush(state)
    assert frames.shape == (1, 4, 32, 32, 3)
    online.reset(state, torch.tensor([True]), person())
    assert state.position.tolist() == [1]


@pytest.mark.parametrize("refiner", [0.0, 0.3])
@pytest.mark.parametrize(
    "changes", [{}, {"colour_correction": 0.7, "reference_refresh_latents": 2, "on_prompt_change": "recompute"}]
)
def test_pipelined_frames_are_the_same_but_later(refiner: float, changes: dict[str, Any]) -> None:
    speak, listen = voice(4000 * 9, 1, batch=2), voice(4000 * 9, 2, batch=2)
    models = [online_model(online_config(refiner_sigma=refiner, pipelined=p, **changes)) for p in (False, True)]
    one, two = (
        stream(m, m.init_state(characters_at([[-1], [-1, -2]])), speak, listen, ["", "she nods"]) for m in models
    )
    assert torch.equal(one, two)
    assert models[1].online.pipeline_chunks == (2 if refiner else 1)


def test_recompute_windows_equals_history_under_the_new_text() -> None:
    """Equals the same latents appended under the new text from the start, if nothing was evicted."""
    online = online_model(
        online_config(on_prompt_change="recompute", history_sigma=0.0, sink_latents=1, window_latents=6)
    )
    given, context = conditions(6).without("references"), online.config.context_latents
    latents, noise = normal(1, 16, 6, 4, 4, seed=8), Noise((1, 16, 1, 4, 4), torch.Generator())
    caches = [online.prefill(person()) for _ in range(2)]
    for cache, text in zip(caches, (normal(1, 4, 8, seed=30), given.text), strict=True):
        for i in range(6):
            conditions_of_chunk = replace(chunk_conditions(given, context, i, 1), text=text)
            online.append(cache, latents[:, :, i : i + 1], conditions_of_chunk, noise)
    assert not torch.allclose(caches[0].values, caches[1].values, atol=1e-3)
    # There is no audio after the window here, so the window is the end of what is given.
    online.recompute_windows(caches[0], given, [0], [torch.Generator()])
    for name in ("keys", "values", "written"):
        assert torch.allclose(getattr(caches[0], name), getattr(caches[1], name), atol=1e-5)


def test_on_prompt_change_recompute_differs_from_keep() -> None:
    audio = voice(4000 * 8, 1)
    models = [online_model(online_config(on_prompt_change=how)) for how in ("keep", "recompute")]
    one, two = (stream(m, m.init_state(person()), audio, audio, ["", "", "", "", "she smiles"]) for m in models)
    assert torch.equal(one[:, :16], two[:, :16])
    assert not torch.equal(one[:, 16:], two[:, 16:])


def test_reference_refresh_replaces_first_reference_once() -> None:
    online = online_model(online_config(reference_refresh_latents=3))
    state, audio = online.init_state(person()), torch.zeros(1, 6400)
    seen = []
    for _ in range(5):
        _, state = online.step(state, audio, audio)
        seen.append(state.cache.reference_keys.clone())
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[4])
    tokens = state.cache.tokens
    assert not torch.allclose(seen[1][:, :, :tokens], seen[2][:, :, :tokens], atol=1e-3)


def test_prefill_names_missing_refiner(online: OnlineModel) -> None:
    with pytest.raises(ValueError, match="no refiner"):
        online.prefill(person(), refiner=True)


@pytest.mark.parametrize(
    "changes", [{}, {"refiner_sigma": 0.3, "on_prompt_change": "recompute", "colour_correction": 0.5}]
)
def test_state_size_and_buffer_addresses_are_constant(changes: dict[str, Any]) -> None:
    online = online_model(online_config(**changes))

    def size(state: OnlineState) -> tuple[int, ...]:
        tensors = (state.speak, state.listen, state.speak_tail, state.listen_tail, state.decoder.features[0])
        caches = [state.cache] if state.refiner_cache is None else [state.cache, state.refiner_cache]
        buffers = [cache.prepared.static for cache in caches]
        held = [t.data_ptr() for static in buffers if static is not None for t in (static.keys, static.values)]
        return (state.nbytes, len(state.cache.prepared.layers), *held, *(t.nbytes for t in tensors))

    state = online.init_state(person())
    audio = torch.zeros(1, online.chunk_samples + online.lookahead_samples)
    sizes = set()
    for _ in range(100):
        _, state = online.step(state, audio, audio, None)
        sizes.add(size(state))
    assert len(sizes) == 1
    assert state.position.tolist() == [101]
    assert int(state.cache.layout(1).chunk_positions) == online.online.cache_latents


def test_seed_determines_frames(online: OnlineModel) -> None:
    audio = voice(4000 * 3, 1)
    first, second, other = (stream(online, online.init_state(person(), seed=s), audio, audio) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_step_returns_uint8_frames_of_the_chunk(online: OnlineModel) -> None:
    frames = stream(online, online.init_state(person()), voice(8000, 1), voice(8000, 2))
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (1, 8, 32, 32, 3))
    assert (online.chunk_frames, online.chunk_samples, online.lookahead_samples) == (4, 4000, 2400)


def test_step_rejects_audio_of_wrong_length(online: OnlineModel) -> None:
    state, right = online.init_state(person()), torch.zeros(1, 6400)
    with pytest.raises(ValueError, match="listen audio has shape"):
        online.step(state, right, right[:, :-1])


def test_generate_keeps_gradients_of_last_forward_only() -> None:
    model = online_model()
    model.backbone.requires_grad_(True)
    cache, given = model.prefill(person()), conditions(1).without("references")
    noise = Noise((1, 16, 1, 4, 4), torch.Generator().manual_seed(0))
    clean = model.generate(cache, given, noise, train=True)
    assert clean.requires_grad
    assert not model.generate(cache, given, noise).requires_grad
    model.append(cache, clean, given, noise)
    clean.square().mean().backward()
    assert float(model.backbone.head.weight.grad.abs().sum()) > 0
    assert not cache.keys.requires_grad
