"""Label every person and frame as speak, listen, idle or discard, from mouth motion, speech and loudness.

`decide_speaking` holds the rule for "speak"; `label_people` derives the other states. All people of a shot (and the
partner in front of the other camera) are decoded together: evidence for one person also counts against the
others, and a switching penalty keeps pauses between words from breaking a turn.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.curate.config import StateConfig
from components.curate.labels.edges import bridge_pauses, mouth_evidence, refine_edges
from components.curate.labels.intervals import runs
from components.dataset.states import DISCARD, IDLE, LISTEN, SPEAK
from lpm_model.config import VIDEO_FPS

_MOTION_LIMIT = 3.0
_EVIDENCE = 0.35
"""Weight of a frame: consecutive frames are correlated, so each counts as about a third of an independent one."""
_SWITCH = float(np.log(1 / 31))
_JOIN = -1.5
"""Log probability of one person starting or stopping while another keeps speaking: such answers are short."""
_OFFSCREEN = float(np.log(0.3))
_BOTH = -1.0
_LOUDNESS_WEIGHT = 2.7
_VOICE_WEIGHT = 2.3
_VOICE_BIAS = 0.25
"""Log odds: the voice detector starts a little too early and releases a little too late."""
_UNVOICED_MOTION = 0.77
"""Log odds of talking above which the mouth motion of a silent person contradicts the label."""
_REST_SMOOTHING = 9
_EDGE_WINDOW = 3
"""Frames over which mouth motion is measured to find where it starts and stops."""


Hypothesis = tuple[frozenset[int], bool]
"""(indices of the visible people who speak, whether anybody speaks, on or off screen)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Labels of one person over T frames."""

    states: NDArray[np.uint8]
    """0 idle, 1 speak, 2 listen, 255 discard, per frame, uint8 [T]."""
    confidence: NDArray[np.float32]
    """Probability of the label per frame, float32 [T]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speaking:
    """Who speaks when."""

    people: list[NDArray[np.bool_]]
    """Whether each visible person speaks, bool [T]."""
    offscreen: NDArray[np.bool_]
    """Whether only somebody off screen speaks, bool [T]."""
    hypotheses: list[Hypothesis]
    """The H hypotheses that were compared."""
    posterior: NDArray[np.float64]
    """Probability of each hypothesis, float64 [T, H]."""


def moving_spread(values: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Return the standard deviation in a centred window of frames; NaN where most of the window is NaN."""
    half = window // 2
    padded = np.pad(values.astype(np.float64), half, mode="edge") if len(values) else values.astype(np.float64)
    if len(values) == 0:
        return np.zeros(0, np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    known = ~np.isnan(windows)
    count = known.sum(axis=1)
    safe = np.maximum(count, 1)
    mean = np.where(known, windows, 0).sum(axis=1) / safe
    spread = np.sqrt(np.where(known, (windows - mean[:, None]) ** 2, 0).sum(axis=1) / safe)
    return np.where(count > half, spread, np.nan).astype(np.float32)


def motion_evidence(gap: NDArray[np.float32], config: StateConfig, window: int) -> NDArray[np.float32]:
    """Return the log odds that a mouth talks from the spread of its gap; 0 where the face is not detected."""
    spread = np.maximum(moving_spread(gap, window), 1e-5)
    low, high = np.log(config.still_motion), np.log(config.moving_motion)
    scaled = (np.log(spread) - (low + high) / 2) / ((high - low) / 2) * 2.0
    clipped = np.clip(np.nan_to_num(scaled, nan=0.0), -_MOTION_LIMIT, _MOTION_LIMIT)
    return np.where(np.isnan(spread), 0.0, clipped).astype(np.float32)


def voice_odds(speech: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log odds of speech, float64 [T], with probabilities clipped to 0.02..0.98."""
    probability = np.clip(speech.astype(np.float64), 0.02, 0.98)
    return np.log(probability / (1 - probability))


def decide_speaking(
    speech: NDArray[np.float32],
    gaps: Sequence[NDArray[np.float32]],
    config: StateConfig,
    *,
    loudness_side: NDArray[np.float32] | None = None,
    pair: tuple[int, int] | None = None,
) -> Speaking:
    """Decide who speaks in every frame. This is the rule behind the state "speak".

    1. Every frame has these hypotheses: nobody speaks, somebody off screen speaks, one visible person speaks, or two
       visible people speak at once.
    2. A hypothesis scores the log odds of the voice activity detector (`speech`), the log odds that each person's mouth
       moves as in talking (the spread of `gaps` over `motion_window` frames between `still_motion` and
       `moving_motion`), and, with two cameras, which microphone is louder. See `_hypothesis_scores`.
    3. Viterbi decoding picks the most likely sequence of hypotheses; switching costs log(1/31) per switch.
    4. Runs shorter than `min_state_s` are merged into their neighbours, each edge is moved to where the person's own
       mouth and voice change (`edges.refine_edges`), and pauses of up to `bridge_s` are filled.

    Args:
        speech: probability of speech per frame, float32 [T].
        gaps: mouth gap of each person in eye distances, float32 [T]; NaN where the face is not detected.
        config: thresholds.
        loudness_side: which microphone of `pair` is louder: +1 the first person's, -1 the second's, float32 [T].
        pair: indices of the two people who have a camera and a microphone each.

    Returns:
        Who speaks when, with the probabilities of all hypotheses.
    """
    motions = [motion_evidence(gap, config, config.motion_window) for gap in gaps]
    hypotheses = _hypotheses(len(gaps))
    scores = _hypothesis_scores(speech, motions, hypotheses, loudness_side, pair)
    path, posterior = _decode(scores, hypotheses)
    shortest = round(config.min_state_s * VIDEO_FPS)
    states = [_states_by_hypothesis(person, hypotheses) for person in range(len(gaps))]
    speaks = [merge_short(by_hypothesis[path], shortest) == SPEAK for by_hypothesis in states]
    offscreen = np.array([voice and not people for people, voice in hypotheses])[path]
    mouths = [mouth_evidence(gap, motion_evidence(gap, config, _EDGE_WINDOW)) for gap in gaps]
    speaks = refine_edges(speaks, mouths, voice_odds(speech), offscreen, config)
    speaks = [bridge_pauses(one, round(config.bridge_s * VIDEO_FPS)) for one in speaks]
    return Speaking(people=speaks, offscreen=offscreen, hypotheses=hypotheses, posterior=posterior)


def label_people(
    speech: NDArray[np.float32],
    gaps: list[NDArray[np.float32]],
    config: StateConfig,
    *,
    loudness_side: NDArray[np.float32] | None = None,
    pair: tuple[int, int] | None = None,
) -> list[Labels]:
    """Label all people on one timeline: speak by `decide_speaking`, listen while anybody else speaks, else idle.

    Args: as for `decide_speaking`.

    Returns:
        One Labels per person, in order.
    """
    if not len(speech):
        return [Labels(states=np.zeros(0, np.uint8), confidence=np.zeros(0, np.float32)) for _ in gaps]
    speaking = decide_speaking(speech, gaps, config, loudness_side=loudness_side, pair=pair)
    anybody = np.logical_or.reduce([*speaking.people, speaking.offscreen])
    shortest = round(config.min_state_s * VIDEO_FPS)
    labels = []
    for person, (speaks, gap) in enumerate(zip(speaking.people, gaps, strict=True)):
        states = np.where(speaks, SPEAK, np.where(anybody, LISTEN, IDLE)).astype(np.uint8)
        agrees = _states_by_hypothesis(person, speaking.hypotheses)[None, :] == states[:, None]
        confidence = np.where(agrees, speaking.posterior, 0).sum(axis=1)
        states = merge_short(extend_listening(states, round(config.listen_hold_s * VIDEO_FPS)), shortest)
        states = _discard_unvoiced_motion(states, gap, config)
        labels.append(Labels(states=states, confidence=confidence.astype(np.float32)))
    return labels


def _states_by_hypothesis(person: int, hypotheses: Sequence[Hypothesis]) -> NDArray[np.uint8]:
    """Return a person's state under each hypothesis, uint8 [H]."""
    states = [SPEAK if person in people else LISTEN if voice else IDLE for people, voice in hypotheses]
    return np.array(states, np.uint8)


def _hypotheses(people: int) -> list[Hypothesis]:
    """Return all hypotheses: nobody, somebody off screen, each person, and every two people at once."""
    sets: list[Hypothesis] = [(frozenset(), False), (frozenset(), True)]
    sets += [(frozenset(who), True) for size in (1, 2) for who in itertools.combinations(range(people), size)]
    return sets


def _hypothesis_scores(
    speech: NDArray[np.float32],
    motions: list[NDArray[np.float32]],
    hypotheses: list[Hypothesis],
    side: NDArray[np.float32] | None,
    pair: tuple[int, int] | None,
) -> NDArray[np.float64]:
    """Return the log likelihood of every hypothesis per frame, float64 [T, H]."""
    odds = voice_odds(speech) - _VOICE_BIAS
    scores = np.zeros((len(speech), len(hypotheses)))
    for h, (people, voice) in enumerate(hypotheses):
        scores[:, h] += _VOICE_WEIGHT * (odds if voice else -odds) / 2
        for i, motion in enumerate(motions):
            scores[:, h] += motion / 2 if i in people else -motion / 2
        if voice and not people:
            scores[:, h] += _OFFSCREEN
        if len(people) > 1:
            scores[:, h] += _BOTH
        if voice and side is not None and pair is not None:
            first, second = pair[0] in people, pair[1] in people
            both = 1 - np.abs(side)  # neither microphone is clearly louder while both people speak
            scores[:, h] += _LOUDNESS_WEIGHT * (side if first > second else -side if second > first else both)
    return scores * _EVIDENCE


def _switch_score(before: Hypothesis, after: Hypothesis) -> float:
    """Return the log probability of switching from one hypothesis to another."""
    if before == after:
        return 0.0
    return _JOIN if before[0] and after[0] and (before[0] < after[0] or after[0] < before[0]) else _SWITCH


def _decode(scores: NDArray[np.float64], hypotheses: list[Hypothesis]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the Viterbi path [T] and the forward-backward posterior [T, H] of the hypotheses."""
    steps, count = scores.shape
    switch = np.array([[_switch_score(a, b) for b in hypotheses] for a in hypotheses])
    best, ahead, back = np.zeros((steps, count)), np.zeros((steps, count)), np.zeros((steps, count))
    came = np.zeros((steps, count), np.int64)
    best[0] = ahead[0] = scores[0]
    for t in range(1, steps):
        moves = best[t - 1][:, None] + switch
        came[t] = moves.argmax(axis=0)
        best[t] = moves.max(axis=0) + scores[t]
        ahead[t] = np.logaddexp.reduce(ahead[t - 1][:, None] + switch, axis=0) + scores[t]
    for t in range(steps - 2, -1, -1):
        back[t] = np.logaddexp.reduce(switch + (scores[t + 1] + back[t + 1])[None, :], axis=1)
    path = np.zeros(steps, np.int64)
    path[-1] = best[-1].argmax()
    for t in range(steps - 1, 0, -1):
        path[t - 1] = came[t, path[t]]
    total = ahead + back
    return path, np.exp(total - np.logaddexp.reduce(total, axis=1, keepdims=True))


def merge_short(states: NDArray[np.uint8], shortest: int) -> NDArray[np.uint8]:
    """Merge runs shorter than `shortest` frames into their longer neighbour, the shortest runs first."""
    states = states.copy()
    while True:
        edges = np.concatenate([[0], np.flatnonzero(np.diff(states)) + 1, [len(states)]])
        lengths = np.diff(edges)
        if len(lengths) < 2 or lengths.min() >= shortest:
            return states
        run = int(lengths.argmin())
        before = lengths[run - 1] if run else -1
        after = lengths[run + 1] if run + 1 < len(lengths) else -1
        source = edges[run] - 1 if before >= after else edges[run + 1]
        states[edges[run] : edges[run + 1]] = states[source]


def extend_listening(states: NDArray[np.uint8], frames: int) -> NDArray[np.uint8]:
    """Extend listening by up to `frames` into the idle time after it: attention outlasts the last word."""
    states = states.copy()
    ends = np.flatnonzero((states[:-1] == LISTEN) & (states[1:] == IDLE)) + 1
    for end in ends:
        rest = states[end : end + frames]
        rest[np.cumsum(rest != IDLE) == 0] = LISTEN
    return states


def _discard_unvoiced_motion(
    states: NDArray[np.uint8], gap: NDArray[np.float32], config: StateConfig
) -> NDArray[np.uint8]:
    """Discard long spans in which a mouth moves as in talking although the person does not speak."""
    smooth, window = _REST_SMOOTHING, config.discard_window
    padded = np.pad(motion_evidence(gap, config, window), smooth // 2, mode="edge")
    restless = np.convolve(padded, np.ones(smooth) / smooth, mode="valid")
    reach = window // 2 + smooth // 2  # up to here the windows include the person's own speech
    near = np.convolve(np.pad(states == SPEAK, reach, mode="edge"), np.ones(2 * reach + 1), mode="valid") > 0.5
    return _discard_long(states, (restless > _UNVOICED_MOTION) & ~near, round(config.min_discard_s * VIDEO_FPS))


def discard_dubbed(labels: Labels, sync: NDArray[np.float32], config: StateConfig) -> Labels:
    """Discard long spans of speech whose loudness does not correlate with the mouth (dubbed audio)."""
    dubbed = (labels.states == SPEAK) & (sync < config.min_sync)
    states = _discard_long(labels.states, dubbed, round(config.min_discard_s * VIDEO_FPS))
    return Labels(states=states, confidence=labels.confidence)


def _discard_long(states: NDArray[np.uint8], mask: NDArray[np.bool_], shortest: int) -> NDArray[np.uint8]:
    states = states.copy()
    for start, stop in runs(mask):
        if stop - start >= shortest:
            states[start:stop] = DISCARD
    return states


def sync_score(gap: NDArray[np.float32], loudness: NDArray[np.float32], lag: int = 5) -> NDArray[np.float32]:
    """Return the best correlation of mouth gap and loudness within +-`lag` frames, in 2 s windows, float32 [T]."""
    opening = np.nan_to_num(gap, nan=float(np.nanmean(gap)) if np.any(~np.isnan(gap)) else 0.0)
    level = np.maximum(loudness, -60.0)
    window = 2 * VIDEO_FPS
    scores = [_correlation(opening, np.roll(level, shift), window) for shift in range(-lag, lag + 1)]
    best: NDArray[np.float32] = np.max(scores, axis=0).astype(np.float32)
    return best


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32], window: int) -> NDArray[np.float64]:
    """Return the Pearson correlation in a centred window, float64 [T]."""
    kernel = np.ones(window) / window

    def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
        padded = np.pad(x, (window // 2, window - 1 - window // 2), mode="edge")
        return np.convolve(padded, kernel, mode="valid")

    x, y = a.astype(np.float64), b.astype(np.float64)
    cov = mean(x * y) - mean(x) * mean(y)
    norm = np.sqrt(np.maximum(mean(x * x) - mean(x) ** 2, 0) * np.maximum(mean(y * y) - mean(y) ** 2, 0))
    return np.where(norm > 1e-6, cov / np.maximum(norm, 1e-6), 0.0)


def gate_audio(
    track: NDArray[np.int16], states: NDArray[np.uint8], muted: int, samples_per_frame: int
) -> NDArray[np.int16]:
    """Mute the frames of one state (and discarded ones) in an audio track, with 10 ms ramps.

    Args:
        track: int16 [T * samples_per_frame].
        states: uint8 [T].
        muted: state to mute: SPEAK gives the listener-only track, LISTEN the speaker-only track; idle stays in both.
        samples_per_frame: samples of one frame.

    Returns:
        The gated audio, int16 [T * samples_per_frame].
    """
    openness = np.repeat((states != muted) & (states != DISCARD), samples_per_frame).astype(np.float32)
    ramp = samples_per_frame * VIDEO_FPS // 100
    window = np.hanning(2 * ramp + 3)[1:-1]
    smooth = np.convolve(np.pad(openness, ramp, mode="edge"), window / window.sum(), mode="valid")
    return np.round(track.astype(np.float32) * smooth).astype(np.int16)
