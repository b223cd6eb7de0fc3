"""People in two shots each, with different room, light, clothes and head yaw, for identity and yaw accuracy."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate.video.faces import FaceFinder
from components.curate.video.identity import embed
from components.performer.compose import HELDOUT_PEOPLE
from components.performer.identity import Identity
from components.performer.renderer import Renderer
from components.performer.tracks import ARKIT_INDEX, Tracks
from lpm_model.progress import Progress
from tests.curate.corpus import as_frame

FRAMES = 6
_TURN = 0.6
"""Largest head yaw (radians)."""
_EMBEDDED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Shots:
    """Measurements of N shots."""

    person: NDArray[np.int64]
    """Index of the person [N]."""
    embedding: NDArray[np.float32]
    """[N, 128], NaN without a detected face or a network."""
    yaw_error_deg: NDArray[np.float32]
    """[N, FRAMES], NaN without a detected face."""


def measure_people(cache: Path, bank: str, count: int, size_px: int, progress: Progress) -> Shots:
    """Measure two shots of each of `count` people, cached per person."""
    first = 40_000 + (HELDOUT_PEOPLE if bank == "heldout" else 0)
    folder = cache / f"{bank}-people-{size_px}"
    folder.mkdir(parents=True, exist_ok=True)
    renderer = Renderer(size_px)
    embeddings, errors = [], []
    for person in progress.track(range(count), f"people at {size_px} px", total=count):
        kept = folder / f"{person:03d}.npz"
        if not kept.exists():
            found = [_shot(renderer, first, person, shot) for shot in range(2)]
            np.savez(kept, embedding=np.stack([e for e, _ in found]), error=np.stack([y for _, y in found]))
        with np.load(kept) as data:
            embeddings.append(data["embedding"])
            errors.append(data["error"])
    return Shots(
        person=np.repeat(np.arange(count), 2),
        embedding=np.concatenate(embeddings),
        yaw_error_deg=np.concatenate(errors),
    )


def _shot(renderer: Renderer, first: int, person: int, shot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean embedding [128] and the yaw errors [FRAMES] in degrees of one shot."""
    chance = np.random.default_rng([first, person, shot])
    room = Identity.from_seed(first + 50_000 + 2 * person + shot)
    who = replace(
        Identity.from_seed(first + person), wall=room.wall, wall_tilt=room.wall_tilt, light_yaw=room.light_yaw,
        light_pitch=room.light_pitch, light_warmth=room.light_warmth, fabric=room.fabric, clothes=room.clothes,
    )  # fmt: skip
    tracks = Tracks.rest(FRAMES)
    tracks.blendshapes[:, ARKIT_INDEX["jawOpen"]] = chance.uniform(0, 0.4, FRAMES)
    for side in "LR":
        tracks.blendshapes[:, ARKIT_INDEX[f"mouthSmile_{side}"]] = chance.uniform(0, 0.5)
    tracks.rotation[:, 0] = chance.uniform(-0.15, 0.15)
    tracks.rotation[:, 1] = np.linspace(0, 1, FRAMES) * chance.uniform(-_TURN, _TURN)
    tracks.rotation[:, 2] = chance.uniform(-0.1, 0.1)
    finder = FaceFinder(1)
    faces: list[NDArray[np.float32]] = []
    errors: list[float] = []
    for picture, turn in zip(renderer.render(who, tracks), tracks.rotation[:, 1], strict=True):
        rows = finder.find(as_frame(picture))
        errors.append(float(np.degrees(abs(rows[0][6] - turn))) if rows else np.nan)
        if rows and len(faces) < _EMBEDDED:
            face = embed(picture, rows[0])
            faces += [] if face is None else [face]
    finder.reset()
    mean = np.mean(faces, axis=0) if faces else np.full(128, np.nan)
    return mean.astype(np.float32), np.array(errors, np.float32)


def purity(labels: list[int], person: NDArray[np.int64]) -> float:
    """Return the fraction of shots that show the majority person of their cluster."""
    clusters = np.array(labels)
    return sum(int(np.bincount(person[clusters == one]).max()) for one in set(labels)) / len(labels)
