"""A small synthetic benchmark: drawn faces whose mouth, smile and head follow known signals."""

import cv2
import numpy as np
import pytest

from components.evaluate.cases.cases import LISTEN, SPEAK, Bench, Case, GroundTruth, ProbeClip

SIZE, FRAMES = 64, 96


def draw_face(person, jaw, smile=0.0, brow=0.0, pitch=0.0):
    """uint8 [64, 64, 3]: one frame of one drawn person."""
    rng = np.random.default_rng(person)
    skin, wall, hair = rng.integers(90, 230, 3), rng.integers(20, 200, 3), rng.integers(0, 120, 3)
    wide, tall = 14 + rng.integers(0, 4), 19 + rng.integers(0, 3)
    big, scale = np.empty((256, 256, 3), np.uint8), 4
    big[:] = wall
    down = 12 * pitch

    def at(x, y):
        return int(scale * x), int(scale * (y + down))

    cv2.ellipse(big, at(32, 31), (scale * (wide + 2), scale * (tall + 2)), 0, 0, 360, hair.tolist(), -1)
    cv2.ellipse(big, at(32, 33), (scale * wide, scale * tall), 0, 0, 360, skin.tolist(), -1)
    for x in (26, 38):
        cv2.circle(big, at(x, 28), scale * 2, (250, 250, 250), -1)
        cv2.circle(big, at(x, 28), scale, (30, 30, 30), -1)
        cv2.line(big, at(x - 3, 24 - 2 * brow), at(x + 3, 24 - 2 * brow), (40, 30, 20), 4)
    cv2.line(big, at(32, 29), at(32, 35), (skin * 0.7).tolist(), 6)
    corners = [at(26 - 2 * smile, 42 - 3 * smile), at(32, 42), at(38 + 2 * smile, 42 - 3 * smile)]
    cv2.polylines(big, [np.array(corners)], False, (170, 60, 60), 7)
    cv2.ellipse(big, at(32, 42 + 2.5 * jaw), (scale * 4, int(scale * (0.5 + 4.5 * jaw))), 0, 0, 360, (50, 10, 10), -1)
    return cv2.resize(big, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def make_ground_truth(seed, frames=FRAMES, begin=None):
    """Signals of one side: it speaks, listens, and nods after the partner's pauses; seeds begin at different points."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames)
    turn = int(rng.integers(frames // 3, frames // 2))
    state = np.where(time < turn, SPEAK, LISTEN).astype(np.uint8)
    noise = np.convolve(rng.normal(size=frames + 8), np.ones(4) / 2, "same")[:frames]
    jaw = np.where(state == SPEAK, np.clip(0.4 + 0.35 * noise, 0, 1), 0.02)
    loud = np.zeros(frames)
    pitch = 0.05 * np.sin(time / 40 + rng.uniform(0, 6))
    at = turn + int(rng.integers(3, 8))
    while at < frames - 20:
        loud[at : at + 12] = 1
        pitch[at + 12 + 9 : at + 12 + 20] += 0.35 * np.sin(np.pi * np.arange(11) / 11)[: max(0, frames - at - 21)]
        at += 12 + int(rng.integers(22, 34))
    warmth = np.convolve(np.repeat(loud, 1), np.ones(12) / 12, "full")[:frames]
    begin = seed % 3 * frames // 3 if begin is None else begin
    jaw, warmth, pitch, state, loud = (np.roll(x, begin) for x in (jaw, warmth, pitch, state, loud))
    listen = (np.repeat(loud, 1000) * 9000 * np.sin(np.arange(frames * 1000) / 9)).astype(np.int16)
    return GroundTruth(
        jaw_open=jaw.astype(np.float32),
        smile=(0.9 * warmth).astype(np.float32),
        brow=(0.5 + 0.5 * np.sin(time / 9 + seed)).astype(np.float32),
        pitch=pitch.astype(np.float32),
        state=state,
        warmth=warmth.astype(np.float32),
        listen=listen,
    )


def draw_video(person, ground_truth):
    """uint8 [T, 64, 64, 3] of a drawn person."""
    rows = zip(ground_truth.jaw_open, ground_truth.smile, ground_truth.brow, ground_truth.pitch, strict=True)
    return np.stack([draw_face(person, *row) for row in rows])


def make_case(name, group, person, seed, frames=FRAMES):
    ground_truth = make_ground_truth(seed, frames)
    speak = (np.repeat(ground_truth.jaw_open, 1000) * 12_000 * np.sin(np.arange(frames * 1000) / 7)).astype(np.int16)
    image = draw_face(person, 0.0)
    return Case(
        name=name,
        group=group,
        person=person,
        image=image,
        reference=image,
        frames=draw_video(person, ground_truth),
        speak=speak,
        ground_truth=ground_truth,
        text="A drawn sentence.",
    )


def make_probe(person):
    ground_truth = make_ground_truth(person, 25, begin=0)
    turned = make_ground_truth(person + 1, begin=0)
    signals = {n: getattr(turned, n)[50:75] for n in ("smile", "brow", "pitch")} | {"jaw_open": ground_truth.jaw_open}
    frames = np.stack(
        [draw_face(person, *(signals[n][t] for n in ("jaw_open", "smile", "brow", "pitch"))) for t in range(25)]
    )
    return ProbeClip(frames=frames, signals=signals)


@pytest.fixture(scope="session")
def drawn_bench():
    """Six cases of three conversations, one long conversation, and sixteen probe people."""
    cases = [make_case(f"c{i // 2}_{'ab'[i % 2]}", f"c{i // 2}", 100 + i, 10 + i) for i in range(6)]
    talk = make_case("talk", "talk", 120, 33, frames=192)
    return Bench(cases=cases, talk=talk, probes=[make_probe(500 + 3 * i) for i in range(16)], digest="d" * 64)


@pytest.fixture(scope="session")
def faces():
    """Functions that draw faces, videos and cases."""
    import types

    return types.SimpleNamespace(draw=draw_face, video=draw_video, ground_truth=make_ground_truth, case=make_case)
