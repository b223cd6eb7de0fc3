"""The streaming model: streaming equals offline, causality, rows, resets, bounded state."""

import copy

import pytest
import torch
from torch import Tensor

from lpm_model import online as online_module
from lpm_model.character import to_frames
from lpm_model.dit import Conditions
from lpm_model.online import Noise, OnlineModel, OnlineState
from tests.lpm_model.recurrence import Recurrence, Segment, joint_pass
from tests.lpm_model.tiny import conditions, normal, online_config, online_model, person, voice

TEXT = ["she smiles"]


def chunks(online: OnlineModel, audio: Tensor) -> list[Tensor]:
    """What each step is given of a whole recording, silence after its end."""
    padded = torch.nn.functional.pad(audio, (0, online.lookahead_samples))
    size = online.chunk_samples
    return [padded[:, i : i + size + online.lookahead_samples] for i in range(0, audio.shape[1], size)]


def stream(online: OnlineModel, state: OnlineState, speak: Tensor, listen: Tensor, text: list[str] = TEXT) -> Tensor:
    """Frames [B, T, H, W, 3] of whole recordings."""
    made = []
    for a, b in zip(chunks(online, speak), chunks(online, listen), strict=True):
        frames, state = online.step(state, a, b, text)
        made.append(frames)
    return torch.cat(made, dim=1)


@pytest.fixture
def latents_of(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects the clean latents of every step, which rounding to bytes would hide."""
    seen: list[Tensor] = []
    plain = OnlineModel.remember

    def remember(self: OnlineModel, cache: object, clean: Tensor, *rest: object) -> None:
        seen.append(clean.clone())
        plain(self, cache, clean, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(OnlineModel, "remember", remember)
    return seen


@pytest.mark.parametrize(("chunk", "window", "latents"), [(1, 3, 3), (1, 3, 14), (3, 3, 15), (3, 4, 18), (6, 7, 18)])
def test_streaming_equals_the_recurrence_that_forgets_nothing(
    chunk: int, window: int, latents: int, latents_of: list[Tensor]
) -> None:
    online = online_model(online_config(chunk_latents=chunk, window_latents=window))
    speak, listen = voice(4000 * latents, 1), voice(4000 * latents, 2)
    frames = stream(online, online.init_state(person(), seed=5), speak, listen)
    expected = Recurrence(online, person()).run(speak, listen, TEXT, seed=5)
    assert torch.allclose(torch.cat(latents_of, dim=2), expected, atol=1e-4)
    # The recurrence is in differences to the image, scaled (lpm_model.anchor); undone here by hand.
    absolute = person().image + expected / online.config.anchor_gain
    whole = online.autoencoder.decode(torch.cat([person().image, absolute], dim=2))[:, :, 1:]
    assert int((frames.int() - to_frames(whole).int()).abs().max()) <= 1


def test_without_history_noise_too(latents_of: list[Tensor]) -> None:
    online = online_model(online_config(history_sigma=0.0, backbone_sigmas=(1.0,)))
    speak, listen = voice(4000 * 7, 1), voice(4000 * 7, 2)
    stream(online, online.init_state(person(), seed=5), speak, listen)
    reference = Recurrence(online, person())
    reference.prime()
    generator = torch.Generator().manual_seed(5)
    features = online.clip_features(speak), online.clip_features(listen)
    for first, got in enumerate(latents_of, 1):
        span = slice(first, first + online.config.context_latents + 1)
        heard = Conditions(online.text(TEXT), features[0][:, span], features[1][:, span])
        x = torch.randn(got.shape, generator=generator)
        clean = x - reference.forward(x, 1.0, heard)[0]
        assert torch.allclose(got, clean, atol=1e-4)
        for layer, pair in zip(reference.history, reference.forward(clean, 0.0, heard)[1], strict=True):
            layer.append(pair)


def test_one_chunk_through_the_cache_is_one_masked_pass(online: OnlineModel) -> None:
    """Image and references see each other, the chunk sees all: nothing of that needs a cache."""
    who, given = person(), conditions(1)
    noisy = normal(1, 16, 1, 4, 4, seed=8)
    got = online.denoise(online.prime(who), noisy, 0, given.without("references"))
    segments = [
        Segment(who.image, [0], 0.0),
        Segment(who.references.transpose(1, 2), who.positions.tolist(), 0.0, crosses=False),
        Segment(noisy, [1], 1.0, given.text, given.speak, given.listen),
    ]
    sees = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    out, _ = joint_pass(online.backbone, who.image, segments, sees)
    assert torch.allclose(got, noisy - out[2], atol=1e-5)


def test_the_reference_agrees_with_the_bidirectional_pass(online: OnlineModel) -> None:
    given, latents = conditions(3), normal(1, 16, 3, 4, 4, seed=8)
    assert given.references is not None
    segments = [
        Segment(latents, [0, 1, 2], 0.4, given.text, given.speak, given.listen),
        Segment(given.references.transpose(1, 2), [-1, -2], 0.0, crosses=False),
    ]
    out, _ = joint_pass(online.backbone, latents[:, :, :1], segments, torch.ones(2, 2, dtype=torch.bool))
    assert torch.allclose(out[0], online.backbone(latents, torch.full((1, 3), 0.4), given), atol=1e-5)


def test_remember_needs_no_forward_before_it(online: OnlineModel) -> None:
    """Writing a chunk must not disturb what the same pass still reads, also when the ring is full."""
    given = conditions(1).without("references")
    quiet = online_model(online_config(history_sigma=0.0))
    caches = [quiet.prime(person()) for _ in range(2)]
    noise = Noise((1, 16, 1, 4, 4), torch.Generator().manual_seed(0))
    for step in range(8):
        clean = normal(1, 16, 1, 4, 4, seed=step)
        quiet.denoise(caches[0], clean, 0, given)
        for cache in caches:
            quiet.remember(cache, clean, given, noise)
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert torch.equal(caches[0].values, caches[1].values)


@pytest.mark.parametrize("role", ["speak", "listen"])
def test_sound_beyond_the_look_ahead_changes_no_frame_before_it(online: OnlineModel, role: str) -> None:
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


class Fixed(Noise):
    """The same noise for every row, whatever the batch."""

    def draw(self) -> Tensor:
        return torch.randn((1, *self.shape[1:]), generator=self.generator).expand(self.shape).clone()


def test_two_rows_at_different_positions_are_two_sessions(
    online: OnlineModel, monkeypatch: pytest.MonkeyPatch, latents_of: list[Tensor]
) -> None:
    monkeypatch.setattr(online_module, "Noise", Fixed)
    a, b = voice(4000 * 9, 1), voice(4000 * 4, 2)
    state = online.init_state(person(), batch=2, seed=3)
    feed = torch.cat([a, torch.cat([torch.zeros(1, 4000 * 5), b], dim=1)])
    parts, fresh = chunks(online, feed), torch.Generator()
    for index, part in enumerate(parts):
        if index == 5:
            online.reset(state, torch.tensor([False, True]), person())
            state.speak_tail[1], state.listen_tail[1] = 0, 0
            fresh.set_state(state.generator.get_state())
        _, state = online.step(state, part, part, None)
    both = torch.cat(latents_of, dim=2)
    assert state.position.tolist() == [10, 5]
    latents_of.clear()
    stream(online, online.init_state(person(), seed=3), a, a, [])
    assert torch.allclose(torch.cat(latents_of, dim=2), both[:1], atol=1e-4)
    latents_of.clear()
    single = online.init_state(person())
    single.generator.set_state(fresh.get_state())
    stream(online, single, b, b, [])
    assert torch.allclose(torch.cat(latents_of, dim=2), both[1:, :, 5:], atol=1e-4)


def test_a_reset_row_is_as_new_and_the_others_are_untouched(online: OnlineModel) -> None:
    state = online.init_state(person(), batch=3)
    for index in range(6):
        sound = voice(online.chunk_samples + online.lookahead_samples, index, batch=3)
        _, state = online.step(state, sound, sound, None)
    before = copy.deepcopy(state.cache)
    kept = {name: getattr(state, name).clone() for name in ("speak", "listen", "speak_tail", "listen_tail")}
    features = state.decoder.features[0].clone()
    online.reset(state, torch.tensor([False, True, False]), person(7))
    new = online.init_state(person(7), batch=3)
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


def test_a_reset_to_another_set_of_references_is_refused(online: OnlineModel) -> None:
    state, other = online.init_state(person(), batch=2), person()
    moved = type(other)(other.image, other.references, torch.tensor([-1, -6]))
    with pytest.raises(ValueError, match="references"):
        online.reset(state, torch.tensor([True, False]), moved)


def test_state_does_not_grow(online: OnlineModel) -> None:
    def size(state: OnlineState) -> tuple[int, ...]:
        tensors = (state.speak, state.listen, state.speak_tail, state.listen_tail, state.decoder.features[0])
        return (state.nbytes, len(state.cache.ready), *(t.nbytes for t in tensors))

    state = online.init_state(person())
    sound = torch.zeros(1, online.chunk_samples + online.lookahead_samples)
    sizes = set()
    for _ in range(100):
        _, state = online.step(state, sound, sound, None)
        sizes.add(size(state))
    assert len(sizes) == 1
    assert state.position.tolist() == [101]
    assert int(state.cache.layout(1).chunk_positions) == online.online.cache_latents


def test_a_seed_decides(online: OnlineModel) -> None:
    sound = voice(4000 * 3, 1)
    first, second, other = (stream(online, online.init_state(person(), seed=s), sound, sound) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_frames_are_bytes_of_the_chunk(online: OnlineModel) -> None:
    frames = stream(online, online.init_state(person()), voice(8000, 1), voice(8000, 2))
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (1, 8, 32, 32, 3))
    assert (online.chunk_frames, online.chunk_samples, online.lookahead_samples) == (4, 4000, 2400)


def test_audio_of_another_length_is_refused(online: OnlineModel) -> None:
    state, right = online.init_state(person()), torch.zeros(1, 6400)
    with pytest.raises(ValueError, match="listen audio has shape"):
        online.step(state, right, right[:, :-1])


def test_gradients_reach_the_last_forward_alone() -> None:
    model = online_model()
    model.backbone.requires_grad_(True)
    cache, given = model.prime(person()), conditions(1).without("references")
    noise = Noise((1, 16, 1, 4, 4), torch.Generator().manual_seed(0))
    clean = model.generate(cache, given, noise, train=True)
    assert clean.requires_grad
    assert not model.generate(cache, given, noise).requires_grad
    model.remember(cache, clean, given, noise)
    clean.square().mean().backward()
    assert float(model.backbone.head.weight.grad.abs().sum()) > 0
    assert not cache.keys.requires_grad
