"""A captioner that calls any OpenAI-compatible endpoint.

Video and audio are sent in separate requests to keep one modality from leaking into the other. Invalid answers are
logged and replaced by the measured captioner's.
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
    CaptionInput,
    Field,
    Fields,
    MeasuredCaptioner,
    Modality,
    describable_frames,
    sentence,
)
from components.curate.options import CaptionConfig, VlmConfig
from components.dataset.states import LISTEN
from lpm_model.config import AUDIO_RATE

log = logging.getLogger(__name__)

VIDEO_FIELDS = ("emotion", "expression", "motion", "shot", *vocabulary.FREE)
"""Fields requested from the frames."""
AUDIO_FIELDS = ("emotion", "loudness", "pitch", "melody", "rate")
"""Fields requested from the audio."""
_MAX_CHARACTERS = 200
"""Longest free text."""
_MAX_WORDS = 6


class EndpointError(ValueError):
    """The endpoint did not return a usable answer."""


def build_captioner(config: CaptionConfig) -> Captioner:
    """Return the captioner that a config selects."""
    return MeasuredCaptioner() if config.captioner == "measured" else VlmCaptioner(config.vlm)


class VlmCaptioner:
    """Captions by a vision-language model, restricted to the vocabulary; states are not changed."""

    def __init__(self, config: VlmConfig) -> None:
        self.name, self.version = config.model, config.version
        self._config = config
        self._measured = MeasuredCaptioner()
        self._failures = 0

    def caption(self, clip: CaptionInput) -> Caption:
        """Caption a clip and its segments; falls back to the measured caption."""
        measured = self._measured.caption(clip)
        if not len(clip.rgb):
            return measured
        fields = self._fields(clip, measured.fields)
        segments = tuple(
            dataclasses.replace(segment, fields=stated, text=sentence(stated))
            for segment in measured.segments
            for stated in (self._fields(clip.span(segment.start, segment.stop), segment.fields),)
        )
        return Caption(text=sentence(fields), fields=fields, segments=segments)

    def _fields(self, clip: CaptionInput, measured: Fields) -> Fields:
        """Return the measured fields overridden by the model's; for a listener only the invariant fields."""
        if self._failures >= self._config.max_failures:
            return measured
        free = describable_frames(clip.states)
        listening = not free.any()
        names = [name for name in VIDEO_FIELDS if not listening or name in vocabulary.INVARIANT]
        try:
            images = image_parts(clip.rgb if listening else clip.rgb[free], self._config.frames)
            stated = self._request_fields(names, "video", images)
            if self._config.audio and not listening:
                stated = {**self._request_fields(AUDIO_FIELDS, "audio", [audio_part(clip)]), **stated}
        except EndpointError as error:
            self._failures += 1
            log.warning("the caption model returned no usable answer (%s): using the measured caption", error)
            if self._failures == self._config.max_failures:
                log.warning(
                    "%s failed %d times in a row: no further requests are sent", self._config.url, self._failures
                )
            return measured
        self._failures = 0
        return {**measured, **stated}

    def _request_fields(self, names: Sequence[str], modality: Modality, parts: list[dict[str, Any]]) -> Fields:
        answer = post(self._config, request_body(self._config, names, modality, parts))
        version = self._config.version or str(answer.get("model") or "unknown")[:80]
        stated = read_answer(answer, names)
        return {
            name: Field(value=value, modality=modality, model=self.name, version=version)
            for name, value in stated.items()
        }


def request_body(
    config: VlmConfig, names: Sequence[str], modality: Modality, parts: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the chat request: the requested fields with their vocabulary, then the images or the audio."""
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
        "messages": [{"role": "user", "content": [{"type": "text", "text": task}, *parts]}],
    }


def image_parts(frames: NDArray[np.uint8], count: int) -> list[dict[str, Any]]:
    """Return evenly spaced frames of RGB [T, H, W, 3] as JPEG parts of a message."""
    import cv2

    chosen = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    parts = []
    for index in chosen:
        done, data = cv2.imencode(
            ".jpg", cv2.cvtColor(frames[index], cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85]
        )
        assert done
        text = base64.b64encode(data.tobytes()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{text}"}})
    return parts


def audio_part(clip: CaptionInput) -> dict[str, Any]:
    """Return the audio, muted while the person listens, as a WAV part of a message."""
    audible = np.repeat(clip.states != LISTEN, len(clip.audio) // max(len(clip.states), 1))
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(AUDIO_RATE)
        out.writeframes(np.where(audible, clip.audio[: len(audible)], 0).astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Reject redirects, which could send images and the key to a host that nobody configured."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(config: VlmConfig, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send a chat request and read a bounded answer within the time limit.

    Raises:
        EndpointError: no connection, an error status, or an answer that is too slow, too long or not a JSON object.
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
    """Parse the fields of a chat answer; words outside the vocabulary are dropped and logged.

    Raises:
        EndpointError: no message with a JSON object, or no usable field in it.
    """
    try:
        content = answer["choices"][0]["message"]["content"]
        values = json.loads(str(content).strip().removeprefix("```json").removesuffix("```"))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise EndpointError(f"no message with a JSON object ({type(error).__name__})") from error
    if not isinstance(values, dict):
        raise EndpointError("the message is not a JSON object")
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        words = _words(name, values.get(name))
        if words:
            found[name] = words
    if not found:
        raise EndpointError(f"none of the fields {', '.join(names)}")
    return found


def _words(name: str, value: Any) -> tuple[str, ...]:
    """Return the usable words of one field's answer."""
    answers = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    texts = [" ".join(item.split()) for item in answers if isinstance(item, str) and item.strip()]
    allowed = vocabulary.allowed(name)
    if allowed is None:
        return (", ".join(texts)[:_MAX_CHARACTERS],) if texts else ()
    known = [text.lower() for text in texts if text.lower() in allowed]
    unknown = [text for text in texts if text.lower() not in allowed]
    if unknown:
        log.warning(
            "the caption model answered %r for %s, which is not in the vocabulary: skipped", unknown[0][:60], name
        )
    return tuple(dict.fromkeys(known))[:_MAX_WORDS]
