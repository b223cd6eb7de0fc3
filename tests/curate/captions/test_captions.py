"""Captions: closed-form voices, what a listener's caption may say, and a model behind an endpoint, good and bad."""

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
from components.curate.captions.expressions import strengths, usual_face
from components.curate.captions.measured import Caption, MeasuredCaptioner, Seen, cut_segments
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


def seen(states: np.ndarray, **changes: Any) -> Seen:
    features = np.tile(RESTING, (len(states), 1))
    values = {
        "states": states.astype(np.uint8),
        "speech": (states != IDLE).astype(np.float32),
        "loudness_db": np.full(len(states), -24, np.float32),
        "sound": tone(110, len(states)),
        "features": features,
        "usual": np.tile(RESTING, (len(states), 1)),
        "face_share": 0.45,
        **changes,
    }
    return Seen(**values)


def runs(*parts: tuple[int, int]) -> np.ndarray:
    return np.concatenate([np.full(length, state, np.uint8) for state, length in parts])


@pytest.mark.parametrize("hz", [80.0, 110.0, 200.0, 330.0])
def test_pitch_of_a_tone(hz: float) -> None:
    found = pitch_hz(tone(hz), np.ones(FRAMES, bool))
    np.testing.assert_allclose(found, hz, rtol=0.01)


def test_noise_has_no_pitch_and_silence_none_either() -> None:
    noise = np.random.default_rng(0).normal(0, 3000, FRAMES * 1000).astype(np.int16)
    assert np.isnan(pitch_hz(noise, np.ones(FRAMES, bool))).all()
    assert np.isnan(pitch_hz(np.zeros_like(noise), np.ones(FRAMES, bool))).all()


def test_syllables_of_a_voice_that_swells_four_times_a_second() -> None:
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(72_000) / 24_000)
    assert syllables((tone(110, 72) * swell).astype(np.int16), np.ones(72, bool)) == 12


def test_the_vocabulary_has_the_structure_of_the_paper() -> None:
    assert len(set(vocabulary.EMOTIONS)) == 78
    assert len(set(vocabulary.EXPRESSIONS)) == 22


@pytest.mark.parametrize("states", [runs((LISTEN, 97)), runs((IDLE, 30), (LISTEN, 50), (IDLE, 17))])
def test_a_listeners_caption_says_only_what_does_not_change(states: np.ndarray) -> None:
    said = MeasuredCaptioner().caption(seen(states))
    assert set(said.fields) <= set(vocabulary.INVARIANT)
    assert said.text == "A person is listening, close-up."


def test_what_happens_while_listening_does_not_reach_any_caption() -> None:
    """Whatever the tracks do on listening frames, the captions stay word for word the same."""
    states = runs((SPEAK, 40), (LISTEN, 37), (SPEAK, 20))
    plain = MeasuredCaptioner().caption(seen(states))
    random = np.random.default_rng(1)
    for _ in range(20):
        wild = seen(states)
        listening = states == LISTEN
        wild.features[listening] = random.normal(0, 1, (int(listening.sum()), len(FEATURES)))
        wild.loudness_db[listening] = random.uniform(-60, 0)
        changed = MeasuredCaptioner().caption(wild)
        assert changed.text == plain.text
        assert changed.segments == plain.segments


def test_a_speaker_who_nods_and_smiles() -> None:
    given = seen(np.full(FRAMES, SPEAK))
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


def test_segments_end_at_pauses_and_turns() -> None:
    given = seen(runs((SPEAK, 60), (IDLE, 8), (LISTEN, 29)))
    given.speech[25:35] = 0.0
    assert cut_segments(given) == [(0, 30), (30, 68), (68, 97)]


def test_no_segment_is_a_moment_of_idleness_at_the_clips_beginning() -> None:
    assert cut_segments(seen(runs((IDLE, 3), (SPEAK, 94)))) == [(0, 97)]
    assert cut_segments(seen(runs((IDLE, 30), (SPEAK, 67)))) == [(0, 30), (30, 97)]
    assert cut_segments(seen(runs((IDLE, 5)))) == [(0, 5)]


def test_every_measured_word_is_in_the_vocabulary() -> None:
    random = np.random.default_rng(2)
    for _ in range(60):
        states = random.choice([SPEAK, LISTEN, IDLE], 4).repeat(24)
        features = random.normal(0, 0.3, (96, len(FEATURES))).astype(np.float32)
        given = seen(states, features=features, face_share=random.uniform(0.1, 0.9))
        for name, field in MeasuredCaptioner().caption(given).fields.items():
            allowed = vocabulary.allowed(name)
            assert allowed is None or set(field.value) <= allowed


Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


@contextmanager
def endpoint(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that keeps the requests it gets."""
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
            """Keep quiet."""

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
    pictures = np.zeros((len(states), 32, 32, 3), np.uint8)
    pictures[..., 0] = np.arange(len(states))[:, None, None]
    config = VlmConfig(url=url, model="seer", timeout_s=5.0, **settings)
    captioner = build_captioner(CaptionConfig(captioner="vlm", vlm=config))
    return captioner.caption(seen(states, pictures=pictures))


def test_a_model_is_asked_for_words_with_pictures_and_sound_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPM_VLM_KEY", "secret")

    def reply(body: dict[str, Any]) -> tuple[int, bytes]:
        kinds = {part["type"] for part in body["messages"][0]["content"]}
        if "input_audio" in kinds:
            return 200, answer(loudness="loud", emotion=["calm"])
        return 200, answer(emotion=["Pride"], expression=["grinning", "beaming"], motion=None, setting="an office")

    with endpoint(reply) as (url, got):
        said = captioned(url, np.full(FRAMES, SPEAK), audio=True, frames=3)
    assert {request["path"] for request in got} == {"/v1/chat/completions"}
    assert {request["key"] for request in got} == {"Bearer secret"}
    assert {(request["model"], request["temperature"]) for request in got} == {("seer", 0)}
    for request in got:
        (message,) = request["messages"]
        text, *shown = message["content"]
        assert "- emotion: any of: admiration" in text["text"]
        kinds = [part["type"] for part in shown]
        assert kinds in (["image_url"] * 3, ["input_audio"])
        if kinds[0] == "image_url":
            head, _, data = shown[0]["image_url"]["url"].partition(",")
            assert head == "data:image/jpeg;base64"
            assert base64.b64decode(data)[:2] == b"\xff\xd8"
        else:
            assert base64.b64decode(shown[0]["input_audio"]["data"])[:4] == b"RIFF"
    emotion, loudness = said.fields["emotion"], said.fields["loudness"]
    assert (emotion.value, emotion.modality, emotion.model, emotion.version) == (
        ("pride",), "video", "seer", "seer-7b-0815",
    )  # fmt: skip
    assert (loudness.value, loudness.modality) == (("loud",), "audio")
    assert said.fields["expression"].value == ("grinning",)  # "beaming" is no word of ours
    assert said.fields["motion"].model == "landmarks"  # null: the measured words stay
    assert said.text.endswith("an office.")


def test_a_model_cannot_put_moods_into_a_listeners_caption() -> None:
    with endpoint(lambda _: (200, answer(emotion=["joy"], motion=["nods"], appearance="a red scarf"))) as (url, got):
        said = captioned(url, np.full(FRAMES, LISTEN))
    assert set(said.fields) <= set(vocabulary.INVARIANT)
    assert said.text == "A person is listening, close-up, a red scarf."
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
def test_a_bad_answer_is_logged_and_the_measured_caption_kept(
    status_and_data: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    states = np.full(FRAMES, SPEAK)
    with endpoint(lambda _: status_and_data) as (url, got):
        said = captioned(url, states, max_answer_bytes=4000, max_failures=2)
    assert said == MeasuredCaptioner().caption(seen(states))
    assert "the measured caption is kept" in caplog.text
    assert {request["path"] for request in got} == {"/v1/chat/completions"}


def test_an_endpoint_that_fails_is_left_alone() -> None:
    with endpoint(lambda _: (500, b"")) as (url, got):
        captioner = VlmCaptioner(VlmConfig(url=url, model="seer", max_failures=2))
        for _ in range(5):
            captioner.caption(seen(np.full(FRAMES, SPEAK), pictures=np.zeros((FRAMES, 8, 8, 3), np.uint8)))
    assert len(got) == 2


def test_a_slow_endpoint_costs_its_time_limit_only() -> None:
    stop = threading.Event()

    def never(_: dict[str, Any]) -> tuple[int, bytes]:
        stop.wait(3.0)
        return 200, b"{}"

    with endpoint(never) as (url, _):
        with pytest.raises(EndpointError, match="timed out"):
            post(VlmConfig(url=url, model="seer", timeout_s=0.3), {"model": "seer"})
        stop.set()


def test_settings_that_cannot_work_are_refused() -> None:
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
def test_the_face_that_half_of_the_frames_show_is_named(changes: dict[str, float], word: str, emotion: str) -> None:
    states = runs((IDLE, FRAMES))
    made = seen(states, sound=np.zeros(FRAMES * 1000, np.int16))
    for name, value in changes.items():
        made.features[20:80, FEATURES.index(name)] += value
    fields = MeasuredCaptioner().caption(made).fields
    assert (fields["expression"].value, fields["emotion"].value) == ((word,), (emotion,))
    made.features[20:50] = made.usual[20:50]  # what is left lasts less than a third of the time
    assert MeasuredCaptioner().caption(made).fields["expression"].value == ("neutral",)


def test_a_clips_expression_is_that_of_the_segments_that_last_longest() -> None:
    states = runs((SPEAK, 30), (IDLE, 40), (SPEAK, 27))
    made = seen(states)
    made.features[30:70, FEATURES.index("smile")] = 0.08  # most frames of no segment but the middle one
    said = MeasuredCaptioner().caption(made)
    assert [segment.fields["expression"].value for segment in said.segments] == [
        ("neutral",),
        ("smiling",),
        ("neutral",),
    ]
    assert said.fields["expression"].value == ("neutral",)


def test_a_face_is_compared_with_what_it_does_without_an_expression() -> None:
    """Brows that follow the head's nods and go up with each word show nothing; those that go up further do."""
    random, frames = np.random.default_rng(5), 480
    values = np.zeros((frames, len(FEATURES)), np.float32)
    states = np.where(np.arange(frames) % 120 < 50, SPEAK, LISTEN).astype(np.uint8)
    pitch = random.normal(0.1, 0.1, frames)
    values[:, FEATURES.index("pitch")] = pitch
    nothing = 0.2 + 0.15 * pitch + 0.03 * (states == SPEAK)
    values[:, FEATURES.index("brow_outer")] = nothing + random.normal(0, 0.001, frames)
    values[100:180, FEATURES.index("brow_outer")] += 0.036
    track = Track(start=0, shot=0, values=values)
    usual = usual_face(track, states)
    np.testing.assert_allclose(usual[:, FEATURES.index("brow_outer")], nothing, atol=0.002)
    surprise = strengths(values, usual)["surprise"]
    assert np.abs(surprise[100:180] - 2.0).max() < 0.4
    assert np.abs(np.delete(surprise, np.s_[100:180])).max() < 0.4


def test_a_track_too_short_to_tell_anything_apart_is_compared_with_its_medians() -> None:
    values = np.random.default_rng(6).normal(0, 1, (40, len(FEATURES))).astype(np.float32)
    usual = usual_face(Track(start=0, shot=0, values=values), np.full(40, SPEAK, np.uint8))
    np.testing.assert_allclose(usual, np.tile(np.median(values, axis=0), (40, 1)), rtol=1e-6)
