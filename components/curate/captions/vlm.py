"""A captioner behind any OpenAI-compatible endpoint.

It looks and listens in separate requests, so that what it sees can't make it hear. What it gets wrong is logged and
said by the measured captioner instead.
"""

import base64
import dataclasses
import io
import json
import logging
import os
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.captions import vocabulary
from components.curate.captions.measured import (
    Caption,
    Captioner,
    Field,
    Fields,
    MeasuredCaptioner,
    Modality,
    Seen,
    described_frames,
    sentence,
)
from components.curate.options import CaptionConfig, VlmConfig
from components.dataset.states import LISTEN
from lpm_model.config import AUDIO_RATE

log = logging.getLogger(__name__)

SEEN = ("emotion", "expression", "motion", "shot", *vocabulary.FREE)
"""Fields that the pictures are asked for."""
HEARD = ("emotion", "loudness", "pitch", "melody", "rate")
"""Fields that the sound is asked for."""
_LONGEST = 200
"""Letters of a free text."""
_MOST_WORDS = 6


class EndpointError(ValueError):
    """The endpoint did not give a usable answer."""


def build_captioner(config: CaptionConfig) -> Captioner:
    """The captioner that a config names."""
    return MeasuredCaptioner() if config.captioner == "measured" else VlmCaptioner(config.vlm)


class VlmCaptioner:
    """Captions by a vision-language model over the fields of the vocabulary; states stay as measured."""

    def __init__(self, config: VlmConfig) -> None:
        self.name, self.version = config.model, config.version
        self._config = config
        self._measured = MeasuredCaptioner()
        self._failures = 0

    def caption(self, seen: Seen) -> Caption:
        """The caption of a clip and of its segments; without an answer, the measured one."""
        known = self._measured.caption(seen)
        if not len(seen.pictures):
            return known
        fields = self._fields(seen, known.fields)
        segments = tuple(
            dataclasses.replace(segment, fields=said, text=sentence(said))
            for segment in known.segments
            for said in (self._fields(seen.part(segment.start, segment.stop), segment.fields),)
        )
        return Caption(text=sentence(fields), fields=fields, segments=segments)

    def _fields(self, seen: Seen, measured: Fields) -> Fields:
        """Measured fields, replaced by what the model says; of a listener only what does not change."""
        if self._failures >= self._config.max_failures:
            return measured
        free = described_frames(seen.states)
        listening = not free.any()
        names = [name for name in SEEN if not listening or name in vocabulary.INVARIANT]
        try:
            shown = pictures_of(seen.pictures if listening else seen.pictures[free], self._config.frames)
            said = self._ask(names, "video", shown)
            if self._config.audio and not listening:
                said = {**self._ask(HEARD, "audio", [sound_of(seen)]), **said}
        except EndpointError as error:
            self._failures += 1
            log.warning("the caption model gave no usable answer (%s): the measured caption is kept", error)
            if self._failures == self._config.max_failures:
                log.warning("%s failed %d times in a row: it is not asked again", self._config.url, self._failures)
            return measured
        self._failures = 0
        return {**measured, **said}

    def _ask(self, names: Sequence[str], modality: Modality, shown: list[dict[str, Any]]) -> Fields:
        answer = post(self._config, request_body(self._config, names, modality, shown))
        version = self._config.version or str(answer.get("model") or "unknown")[:80]
        said = read_answer(answer, names)
        return {
            name: Field(value=value, modality=modality, model=self.name, version=version)
            for name, value in said.items()
        }


def request_body(
    config: VlmConfig, names: Sequence[str], modality: Modality, shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """The chat request: the fields wanted with their words, then the pictures or the sound."""
    lines = []
    for name in names:
        words = vocabulary.allowed(name)
        lines.append(f"- {name}: " + (f"any of: {', '.join(sorted(words))}" if words else "a few words, or null"))
    what = "pictures, in order, of one person in a video" if modality == "video" else "the voice of one person"
    task = (
        f"You describe {what}. Say only what you can {'see' if modality == 'video' else 'hear'}. Answer with one JSON "
        "object that has these keys; each value is a list of words from the list, in the order in which they happen, "
        "or null where you can't tell:\n" + "\n".join(lines)
    )
    return {
        "model": config.model,
        "temperature": 0,
        "seed": 0,
        "max_tokens": 512,
        "response_format": {"type": "json_object"},
        "messages": [{"role": "user", "content": [{"type": "text", "text": task}, *shown]}],
    }


def pictures_of(pictures: NDArray[np.uint8], count: int) -> list[dict[str, Any]]:
    """Evenly chosen frames as JPEG parts of a message."""
    import cv2

    chosen = np.unique(np.linspace(0, len(pictures) - 1, count).round().astype(int))
    parts = []
    for index in chosen:
        done, data = cv2.imencode(
            ".jpg", cv2.cvtColor(pictures[index], cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85]
        )
        assert done
        text = base64.b64encode(data.tobytes()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{text}"}})
    return parts


def sound_of(seen: Seen) -> dict[str, Any]:
    """The sound while the person does not listen, as a WAV part of a message."""
    open_ = np.repeat(seen.states != LISTEN, len(seen.sound) // max(len(seen.states), 1))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(AUDIO_RATE)
        out.writeframes(np.where(open_, seen.sound[: len(open_)], 0).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry pictures and key to a place that nobody configured."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(config: VlmConfig, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send a chat request, read a bounded answer within the time limit.

    Raises:
        EndpointError: no connection, an error status, an answer that is too slow, too long or not a JSON object.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    key = os.environ.get(config.key_env, "")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{config.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
    )
    deadline = time.monotonic() + config.timeout_s
    data = bytearray()
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=config.timeout_s) as answer:
            while piece := answer.read1(65_536):
                data += piece
                if len(data) > config.max_answer_bytes:
                    raise EndpointError(f"more than {config.max_answer_bytes} bytes")
                if time.monotonic() > deadline:
                    raise EndpointError(f"not complete after {config.timeout_s:g} s")
    except (OSError, ValueError) as error:
        if isinstance(error, EndpointError):
            raise
        raise EndpointError(f"{type(error).__name__}: {error}") from error
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise EndpointError(f"not JSON: {data[:60]!r}") from error
    if not isinstance(parsed, dict):
        raise EndpointError("not a JSON object")
    return parsed


def read_answer(answer: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The known fields of a chat answer; words outside the vocabulary are dropped and logged.

    Raises:
        EndpointError: no message with a JSON object, or nothing in it can be used.
    """
    try:
        content = answer["choices"][0]["message"]["content"]
        values = json.loads(str(content).strip().removeprefix("```json").removesuffix("```"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EndpointError(f"no message with a JSON object ({type(error).__name__})") from error
    if not isinstance(values, dict):
        raise EndpointError("the message is no JSON object")
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        words = _words(name, values.get(name))
        if words:
            found[name] = words
    if not found:
        raise EndpointError(f"none of the fields {', '.join(names)}")
    return found


def _words(name: str, value: Any) -> tuple[str, ...]:
    """What may be kept of one field's answer."""
    given = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    texts = [" ".join(item.split()) for item in given if isinstance(item, str) and item.strip()]
    allowed = vocabulary.allowed(name)
    if allowed is None:
        return (", ".join(texts)[:_LONGEST],) if texts else ()
    known = [text.lower() for text in texts if text.lower() in allowed]
    odd = [text for text in texts if text.lower() not in allowed]
    if odd:
        log.warning("the caption model said %r for %s, which is not in the vocabulary: left out", odd[0][:60], name)
    return tuple(dict.fromkeys(known))[:_MOST_WORDS]
