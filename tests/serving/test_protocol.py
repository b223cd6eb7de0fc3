import base64
import json
import re
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import protocol
from serving.protocol import (
    AudioAppend,
    Interrupt,
    MediaChunk,
    PlaybackFinished,
    ProtocolError,
    SessionOpen,
    TextSpeak,
    pack,
    parse_client,
    parse_server,
    unpack,
)


def members(union: object) -> tuple[type, ...]:
    return typing.get_args(typing.get_args(union)[0])


@pytest.mark.parametrize(
    "message",
    [
        SessionOpen(token="secret", character_id="ana", caps=["fmp4"]),
        TextSpeak(text="Hello.", voice="hibari:+2", event_id="e-1"),
        Interrupt(reason="barge-in", played_samples=48_000),
    ],
)
def test_client_messages_round_trip(message: protocol.ClientMessage) -> None:
    parsed, payload = parse_client(message.model_dump_json(exclude_none=True))
    assert parsed == message
    assert payload == b""


def test_server_messages_round_trip() -> None:
    chunk = MediaChunk(
        seq=9,
        pts_samples=4000,
        duration_samples=4000,
        state="speaking",
        user_samples=0,
        user_buffered_samples=0,
        compute_ms=1.5,
    )
    assert parse_server(pack(chunk, b"fragment")) == (chunk, b"fragment")
    finished = PlaybackFinished(seq=3, segment_id="a", position_samples=12, interrupted=True)
    assert parse_server(finished.model_dump_json()) == (finished, b"")


def test_audio_is_accepted_as_bytes_or_base64() -> None:
    pcm = bytes(range(8))
    binary = parse_client(pack(AudioAppend(role="user", seq=4), pcm))
    text = json.dumps({"type": "audio.append", "role": "user", "seq": 4, "b64": base64.b64encode(pcm).decode()})
    assert binary[1] == parse_client(text)[1] == pcm


def test_message_types_are_unique_per_direction() -> None:
    for union in (protocol.AnyClientMessage, protocol.AnyServerMessage):
        names = [member.model_fields["type"].default for member in members(union)]
        assert len(set(names)) == len(names)
    assert all("seq" in member.model_fields for member in members(protocol.AnyServerMessage))
    assert all("event_id" in member.model_fields for member in members(protocol.AnyClientMessage))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ('{"type": "session.explode", "event_id": "e7"}', "unknown_message"),
        ('{"event_id": "e7"}', "unknown_message"),
        ("[]", "bad_message"),
        ("{", "bad_message"),
        ('{"type": "interrupt", "surprise": 1}', "invalid_field"),
        ('{"type": "text.speak", "text": ""}', "invalid_field"),
        ('{"type": "playback.ack", "played_samples": -1}', "invalid_field"),
        ('{"type": "audio.append", "role": "character", "b64": "AAAA"}', "bad_audio"),
        ('{"type": "audio.append", "role": "character", "b64": "AAA="}', "invalid_field"),
        ('{"type": "audio.append", "role": "user", "b64": "?"}', "bad_audio"),
        (b"\x01", "bad_frame"),
        (b"\xff\xff\xff\xff{}", "bad_frame"),
        (b"\x02\x00\x00\x00\xff\xff", "bad_frame"),
        (pack(Interrupt(), b"payload"), "bad_frame"),
    ],
)
def test_invalid_messages_raise_documented_codes(data: str | bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_client(data)
    assert caught.value.code == code


def test_error_carries_the_event_id() -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_client('{"type": "session.explode", "event_id": "e7"}')
    assert caught.value.event_id == "e7"


@given(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_parser_raises_only_protocol_errors(data: str | bytes) -> None:
    code = ""
    try:
        parse_client(data)
    except ProtocolError as error:
        code = error.code
    assert code in {"", "bad_message", "bad_frame", "unknown_message", "invalid_field", "bad_audio"}


@given(st.binary(max_size=300))
def test_pack_preserves_the_payload(payload: bytes) -> None:
    header, back = unpack(pack(AudioAppend(role="user"), payload))
    assert back == payload
    assert json.loads(header)["type"] == "audio.append"


def test_readme_examples_parse_and_cover_every_client_message() -> None:
    text = (Path(protocol.__file__).parent / "README.md").read_text()
    shown = [json.loads(found) for found in re.findall(r"\{\"type\".*?\}", text)]
    audio = base64.b64encode(bytes(4)).decode()
    for message in shown:
        parse_client(json.dumps({**message, **({"b64": audio} if "b64" in message else {})}))
    known = {member.model_fields["type"].default for member in members(protocol.AnyClientMessage)}
    assert {message["type"] for message in shown} == known - {"ping"}
