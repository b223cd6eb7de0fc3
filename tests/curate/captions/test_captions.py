"""Captions: closed-form voices, invariants of listener captions, and a model behind a good or bad endpoint."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from components.curate.captions import vocabulary
from components.curate.captions.expressions import expression_strengths, neutral_face
from components.curate.captions.measured import Caption, CaptionInput, MeasuredCaptioner, cut_segments
from components.curate.captions.prosody import pitch_hz, syllables
from components.curate.captions.vlm import EndpointError, VlmCaptioner, build_captioner, post
from components.curate.options import CaptionConfig, VlmConfig
from components.curate.video.faces import FEATURES, Track
from components.dataset.states import IDLE, LISTEN, SPEAK

FRAMES = 97
RESTING = np.zeros(len(FEATURES), np.float32)
RESTING[FEATURES.index("eyes")] = 0.3


def tone(hz: float, frames: int = FRAMES) -> np.ndarray:
    at = np.arange(frames * 1000) / 24_000
    voice = sum(np.sin(2 * np.pi * hz * k * at) / k for k in range(1, 8))
    return (voice / np.abs(voice).max() * 12_000).astype(np.int16)


def clip_input(states: np.ndarray, **changes: Any) -> CaptionInput:
    features = np.tile(RESTING, (len(states), 1))
    values = {
        "states": states.astype(np.uint8),
        "speech": (states != IDLE).astype(np.float32),
        "loudness_db": np.full(len(states), -24, np.float32),
        "audio": tone(110, len(states)),
        "features": features,
        "neutral": np.tile(RESTING, (len(states), 1)),
        "face_ratio": 0.45,
        **changes,
    }
    return CaptionInput(**values)


def runs(*parts: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(length, state, np.uint8) for state, length in parts])


@pytest.mark.parametrize("hz", [80.0, 110.0, 200.0, 330.0])
def test_pitch_of_a_tone(hz: float) -> None:
    found = pitch_hz(tone(hz), np.ones(FRAMES, bool))
    np.testing.assert_allclose(found, hz, rtol=0.01)


def test_pitch_of_noise_and_silence_is_nan() -> None:
    noise = np.random.default_rng(0).normal(0, 3000, FRAMES * 1000).astype(np.int16)
    assert np.isnan(pitch_hz(noise, np.ones(FRAMES, bool))).all()
    assert np.isnan(pitch_hz(np.zeros_like(noise), np.ones(FRAMES, bool))).all()


def test_syllables_counts_four_swells_per_second() -> None:
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(72_000) / 24_000)
    assert syllables((tone(110, 72) * swell).astype(np.int16), np.ones(72, bool)) == 12


def test_vocabulary_sizes_match_the_paper() -> None:
    assert len(set(vocabulary.EMOTIONS)) == 78
    assert len(set(vocabulary.EXPRESSIONS)) == 22


@pytest.mark.parametrize("states", [runs((LISTEN, 97)), runs((IDLE, 30), (LISTEN, 50), (IDLE, 17))])
def test_listener_caption_has_only_invariant_fields(states: np.ndarray) -> None:
    caption = MeasuredCaptioner().caption(clip_input(states))
    assert set(caption.fields) <= set(vocabulary.INVARIANT)
    assert caption.text == "A person is listening, close-up."


def test_listening_frames_do_not_influence_captions() -> None:
    """Captions stay identical whatever the tracks contain on listening frames."""
    states = runs((SPEAK, 40), (LISTEN, 37), (SPEAK, 20))
    plain = MeasuredCaptioner().caption(clip_input(states))
    random = np.random.default_rng(1)
    for _ in range(20):
        wild = clip_input(states)
        listening = states == LISTEN
        wild.features[listening] = random.normal(0, 1, (int(listening.sum()), len(FEATURES)))
        wild.loudness_db[listening] = random.uniform(-60, 0)
        changed = MeasuredCaptioner().caption(wild)
        assert changed.text == plain.text
        assert changed.segments == plain.segments


def test_caption_of_a_speaker_who_nods_and_smiles() -> None:
    given = clip_input(np.full(FRAMES, SPEAK))
    at = np.arange(FRAMES) / 24
    given.features[:, FEATURES.index("pitch")] = 0.12 * np.maximum(np.sin(2 * np.pi * 1.5 * at), 0)
    given.features[:, FEATURES.index("smile")] = 0.08
    fields = MeasuredCaptioner().caption(given).fields
    assert fields["expression"].value == ("smiling",)
    assert fields["emotion"].value == ("happiness",)
    assert fields["motion"].value == ("nods",)
    assert fields["pitch"].value == ("low",)
    assert {fields[name].modality for name in ("expression", "motion")} == {"video"}
    assert {fields[name].modality for name in ("loudness", "pitch", "rate")} == {"audio"}


def test_cut_segments_ends_at_pauses_and_turns() -> None:
    given = clip_input(runs((SPEAK, 60), (IDLE, 8), (LISTEN, 29)))
    given.speech[25:35] = 0.0
    assert cut_segments(given) == [(0, 30), (30, 68), (68, 97)]


def test_short_initial_idle_joins_the_next_segment() -> None:
    assert cut_segments(clip_input(runs((IDLE, 3), (SPEAK, 94)))) == [(0, 97)]
    assert cut_segments(clip_input(runs((IDLE, 30), (SPEAK, 67)))) == [(0, 30), (30, 97)]
    assert cut_segments(clip_input(runs((IDLE, 5)))) == [(0, 5)]


def test_measured_words_are_in_the_vocabulary() -> None:
    random = np.random.default_rng(2)
    for _ in range(60):
        states = random.choice([SPEAK, LISTEN, IDLE], 4).repeat(24)
        features = random.normal(0, 0.3, (96, len(FEATURES))).astype(np.float32)
        given = clip_input(states, features=features, face_ratio=random.uniform(0.1, 0.9))
        for name, field in MeasuredCaptioner().caption(given).fields.items():
            allowed = vocabulary.allowed(name)
            assert allowed is None or set(field.value) <= allowed


Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


@contextmanager
def endpoint(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that records its requests."""
    got: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            status, data = reply(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Suppress the access log."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", got
    finally:
        server.shutdown()
        server.server_close()


def answer(**fields: Any) -> bytes:
    message = {"role": "assistant", "content": json.dumps(fields)}
    return json.dumps({"model": "seer-7b-0815", "choices": [{"message": message}]}).encode()


def captioned(url: str, states: np.ndarray, **settings: Any) -> Caption:
    frames = np.zeros((len(states), 32, 32, 3), np.uint8)
    frames[..., 0] = np.arange(len(states))[:, None, None]
    config = VlmConfig(url=url, model="seer", timeout_s=5.0, **settings)
    captioner = build_captioner(CaptionConfig(captioner="vlm", vlm=config))
    return captioner.caption(clip_input(states, rgb=frames))


def test_vlm_receives_images_and_audio_in_separate_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPM_VLM_KEY", "secret")

    def reply(body: dict[str, Any]) -> tuple[int, bytes]:
        kinds = {part["type"] for part in body["messages"][0]["content"]}
        if "input_audio" in kinds:
            return 200, answer(loudness="loud", emotion=["calm"])
        return 200, answer(emotion=["Pride"], expression=["grinning", "beaming"], motion=None, setting="an office")

    with endpoint(reply) as (url, got):
        caption = captioned(url, np.full(FRAMES, SPEAK), audio=True, frames=3)
    assert {request["path"] for request in got} == {"/v1/chat/completions"}
    assert {request["key"] for request in got} == {"Bearer secret"}
    assert {(request["model"], request["temperature"]) for request in got} == {("seer", 0)}
    for request in got:
        (message,) = request["messages"]
        text, *parts = message["content"]
        assert "- emotion: any of: admiration" in text["text"]
        kinds = [part["type"] for part in parts]
        assert kinds in (["image_url"] * 3, ["input_audio"])
        if kinds[0] == "image_url":
            head, _, data = parts[0]["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            assert base64.b64decode(data)[:2] == b"\xff\xd8"
        else:
            assert base64.b64decode(parts[0]["input_audio"]["data"])[:4] == b"RIFF"
    emotion, loudness = caption.fields["emotion"], caption.fields["loudness"]
    assert (emotion.value, emotion.modality, emotion.model, emotion.version) == (
        ("pride",), "video", "seer", "seer-7b-0815",
    )  # fmt: skip
    assert (loudness.value, loudness.modality) == (("loud",), "audio")
    assert caption.fields["expression"].value == ("grinning",)  # "beaming" is not in the vocabulary
    assert caption.fields["motion"].model == "landmarks"  # null keeps the measured words
    assert caption.text.endswith("an office.")


def test_vlm_cannot_add_time_varying_fields_to_listener_captions() -> None:
    with endpoint(lambda _: (200, answer(emotion=["joy"], motion=["nods"], appearance="a red scarf"))) as (url, got):
        caption = captioned(url, np.full(FRAMES, LISTEN))
    assert set(caption.fields) <= set(vocabulary.INVARIANT)
    assert caption.text == "A person is listening, close-up, a red scarf."
    assert all("- emotion" not in request["messages"][0]["content"][0]["text"] for request in got)


BAD = {
    "no JSON": (200, b"<html>busy</html>"),
    "an array": (200, b"[]"),
    "no choices": (200, b'{"model": "x"}'),
    "prose": (200, json.dumps({"choices": [{"message": {"content": "She smiles."}}]}).encode()),
    "unknown words": (200, answer(emotion=["zest"], expression=7)),
    "an error": (500, b"{}"),
    "a redirect": (302, b""),
    "too long": (200, b" " * 5000 + answer(emotion=["joy"])),
}


@pytest.mark.parametrize("status_and_data", BAD.values(), ids=BAD.keys())
def test_bad_answers_fall_back_to_the_measured_caption(
    status_and_data: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    states = np.full(FRAMES, SPEAK)
    with endpoint(lambda _: status_and_data) as (url, got):
        caption = captioned(url, states, max_answer_bytes=4000, max_failures=2)
    assert caption == MeasuredCaptioner().caption(clip_input(states))
    assert "using the measured caption" in caplog.text
    assert {request["path"] for request in got} == {"/v1/chat/completions"}


def test_failing_endpoint_is_not_called_again() -> None:
    with endpoint(lambda _: (500, b"")) as (url, got):
        captioner = VlmCaptioner(VlmConfig(url=url, model="seer", max_failures=2))
        for _ in range(5):
            captioner.caption(clip_input(np.full(FRAMES, SPEAK), rgb=np.zeros((FRAMES, 8, 8, 3), np.uint8)))
    assert len(got) == 2


def test_slow_endpoint_times_out() -> None:
    stop = threading.Event()

    def never(_: dict[str, Any]) -> tuple[int, bytes]:
        stop.wait(3.0)
        return 200, b"{}"

    with endpoint(never) as (url, _):
        with pytest.raises(EndpointError, match="timed out"):
            post(VlmConfig(url=url, model="seer", timeout_s=0.3), {"model": "seer"})
        stop.set()


def test_invalid_caption_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"give captions\.vlm\.url"):
        CaptionConfig(captioner="vlm")
    with pytest.raises(ValueError, match="http://"):
        VlmConfig(url="file:///etc/passwd")


@pytest.mark.parametrize(
    ("changes", "word", "emotion"),
    [
        ({}, "neutral", "neutral"),
        ({"smile": 0.05}, "smiling", "happiness"),
        ({"smile": 0.08, "gap": 0.2}, "laughing", "amusement"),
        ({"gap": 0.3, "smile": 0.03}, "neutral", "neutral"),
        ({"brow_inner": 0.03, "brow_outer": 0.03}, "surprise", "surprise"),
        ({"brow_inner": 0.02}, "sadness", "sadness"),
        ({"brow_inner": -0.02, "brow_outer": -0.02}, "frowning", "annoyance"),
        ({"brow_outer": -0.02, "yaw": 0.5}, "neutral", "neutral"),
    ],
)
def test_expression_in_half_of_the_frames_is_captioned(changes: dict[str, float], word: str, emotion: str) -> None:
    states = runs((IDLE, FRAMES))
    made = clip_input(states, audio=np.zeros(FRAMES * 1000, np.int16))
    for name, value in changes.items():
        made.features[20:80, FEATURES.index(name)] += value
    fields = MeasuredCaptioner().caption(made).fields
    assert (fields["expression"].value, fields["emotion"].value) == ((word,), (emotion,))
    made.features[20:50] = made.neutral[20:50]  # the rest lasts less than a third of the time
    assert MeasuredCaptioner().caption(made).fields["expression"].value == ("neutral",)


def test_clip_expression_is_that_of_the_longest_segments() -> None:
    states = runs((SPEAK, 30), (IDLE, 40), (SPEAK, 27))
    made = clip_input(states)
    made.features[30:70, FEATURES.index("smile")] = 0.08  # most frames of the middle segment only
    caption = MeasuredCaptioner().caption(made)
    assert [segment.fields["expression"].value for segment in caption.segments] == [
        ("neutral",),
        ("smiling",),
        ("neutral",),
    ]
    assert caption.fields["expression"].value == ("neutral",)


def test_neutral_face_explains_head_rotation_and_talking() -> None:
    """Brows that follow the head's pitch and rise while talking are neutral; a larger rise is surprise."""
    random, frames = np.random.default_rng(5), 480
    values = np.zeros((frames, len(FEATURES)), np.float32)
    states = np.where(np.arange(frames) % 120 < 50, SPEAK, LISTEN).astype(np.uint8)
    pitch = random.normal(0.1, 0.1, frames)
    values[:, FEATURES.index("pitch")] = pitch
    neutral_brows = 0.2 + 0.15 * pitch + 0.03 * (states == SPEAK)
    values[:, FEATURES.index("brow_outer")] = neutral_brows + random.normal(0, 0.001, frames)
    values[100:180, FEATURES.index("brow_outer")] += 0.036
    track = Track(start=0, shot=0, values=values)
    neutral = neutral_face(track, states)
    np.testing.assert_allclose(neutral[:, FEATURES.index("brow_outer")], neutral_brows, atol=0.002)
    surprise = expression_strengths(values, neutral)["surprise"]
    assert np.abs(surprise[100:180] - 2.0).max() < 0.4
    assert np.abs(np.delete(surprise, np.s_[100:180])).max() < 0.4


def test_neutral_face_of_a_short_track_is_its_median() -> None:
    values = np.random.default_rng(6).normal(0, 1, (40, len(FEATURES))).astype(np.float32)
    neutral = neutral_face(Track(start=0, shot=0, values=values), np.full(40, SPEAK, np.uint8))
    np.testing.assert_allclose(neutral, np.tile(np.median(values, axis=0), (40, 1)), rtol=1e-6)
