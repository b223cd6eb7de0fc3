"""Reference pictures of the same person from outside a clip's span: a global one, head views and expressions.

Frames are proposed from the tracks, before any picture is kept; the pictures then decide: sharp and open-eyed ones
first, never a copy of a frame of the clip, never somebody else.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.faces import Track
from components.curate.likeness import copy_distance, describe
from components.curate.manifest import DISCARD, SPEAK
from lpm_model.config import VIDEO_FPS

VIEWS = {"front": "view_0", "left": "view_1", "right": "view_2"}
"""Head views by angle; view_3, the back of the head, is beyond what a face tracker sees."""
EXPRESSIONS = {
    name: f"expression_{slot}"
    for slot, name in enumerate(("smile", "laugh", "surprise", "talk", "frown", "squint", "calm", "wide_eyes"))
}
"""Expressions that landmarks can tell, each in a slot of its own."""
NEAR_COPY = "references_are_copies"
"""Reason of a clip whose candidates of a global reference all look like one of its frames, or like somebody else."""
REFERENCE_REASONS = ("no_reference", NEAR_COPY)
"""Reasons for which a clip is dropped after its quality was found good."""
_APART_FRAMES = 6
_SMILE = 0.05
_TURN_RAD, _FRONT_RAD = 0.30, 0.15
_OPEN_GAP = 0.12

Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A kind of reference and the frames it may come from."""

    kind: str
    """One of lpm_model.config.REFERENCE_KINDS."""
    shows: str
    """global, or a name of VIEWS or EXPRESSIONS."""
    frames: list[int]
    """Candidate frames of the source."""
    openness: list[float]
    """How open the eyes (and the mouth, where it belongs to the expression) are on each of them, 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One candidate's picture."""

    picture: Picture
    """RGB, square, as clips are cut."""
    sharpness: float
    """Of the face."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """A reference that was taken."""

    choice: Choice
    """What it stands for."""
    frame: int
    """Frame of the source."""
    distance: float
    """Perceptual distance to the nearest frame of the clip."""
    similarity: float | None
    """Cosine of the face descriptors of picture and clip; None where no face was found in one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The frames of a track that may show one thing, the best first."""

    shows: str
    """global, or a name of VIEWS or EXPRESSIONS."""
    frames: NDArray[np.int64]
    """Frames of the source."""
    openness: NDArray[np.float64]
    """How open eyes and mouth are on each of them, 0..1."""


def rank(track: Track, states: NDArray[np.uint8]) -> list[Ranking]:
    """What a person's track can show, in order of worth; made once for all clips of the track.

    Args:
        track: the person.
        states: the person's states [T].
    """
    found = []
    for shows, allowed, cost, openness in _wanted(track, states, track.seen & (states != DISCARD)):
        order = np.flatnonzero(allowed)
        order = order[np.argsort(cost[order], kind="stable")]
        found.append(Ranking(shows=shows, frames=track.start + order, openness=openness[order]))
    return found


def choose_references(rankings: list[Ranking], start: int, frames: int, config: CurationConfig) -> list[Choice]:
    """Candidates of one clip's references, all from the same track as the clip.

    Args:
        rankings: what the track can show.
        start: the clip's first frame in the source.
        frames: the clip's length.
        config: how many references.

    Returns:
        The global reference first; empty where the person is never seen well outside the clip.
    """
    guard = round(config.references.guard_s * VIDEO_FPS)
    near = range(start - guard, start + frames + guard)
    choices: list[Choice] = []
    room = {"view": config.references.max_views, "expression": config.references.max_expressions}
    for ranking in rankings:
        kind = VIEWS.get(ranking.shows) or EXPRESSIONS.get(ranking.shows) or "global"
        group = kind.partition("_")[0]
        best = _best(ranking.frames, near, config.references.candidates) if room.get(group, 1) else []
        if not best:
            continue
        choices.append(
            Choice(
                kind=kind,
                shows=ranking.shows,
                frames=[int(ranking.frames[i]) for i in best],
                openness=[float(ranking.openness[i]) for i in best],
            )
        )
        room[group] = room.get(group, 1) - 1
    if not choices or choices[0].kind != "global":
        return []
    return choices[: config.max_references]


Wanted = tuple[str, NDArray[np.bool_], NDArray[Any], NDArray[Any]]


def _wanted(track: Track, states: NDArray[np.uint8], free: NDArray[np.bool_]) -> Iterator[Wanted]:
    """(what it shows, frames that do, cost, openness) in order of worth."""
    yaw, eyes, smile, gap = (track.column(name) for name in ("yaw", "eyes", "smile", "gap"))
    pitch = track.column("pitch")
    open_eyes = np.clip(np.nan_to_num(eyes, nan=0.0) / max(float(np.nanmedian(eyes)), 1e-6), 0.0, 2.0)
    awake = free & (open_eyes > 0.75)
    openness = np.minimum(open_eyes, 1.0)
    frontal = np.nan_to_num(np.hypot(yaw, pitch - np.nanmedian(pitch)), nan=9.0)
    excess = np.nan_to_num(smile, nan=float(np.nanmedian(smile))) - float(np.nanmedian(smile))
    mouth = np.nan_to_num(gap, nan=0.0)
    wide_mouth = np.clip(mouth / _OPEN_GAP, 0.0, 1.0)
    calm = frontal + 2.0 * mouth + np.abs(excess) + 0.2 * (states == SPEAK)
    usual = float(np.nanmedian(yaw))
    turned = np.nan_to_num(yaw, nan=usual)
    yield "global", awake & (frontal < 0.6), calm, openness
    yield "smile", awake & (excess > _SMILE) & (mouth < _OPEN_GAP), -excess, openness
    yield "left", awake & (turned < -_TURN_RAD), turned, openness
    yield "right", awake & (turned > _TURN_RAD), -turned, openness
    yield "laugh", awake & (excess > _SMILE) & (mouth >= _OPEN_GAP), -excess - mouth, openness * wide_mouth
    yield "surprise", awake & (open_eyes > 1.2) & (mouth >= _OPEN_GAP), -open_eyes - mouth, openness * wide_mouth
    yield "talk", awake & (states == SPEAK) & (mouth >= _OPEN_GAP), -mouth, openness * wide_mouth
    yield "frown", awake & (excess < -_SMILE), excess, openness
    yield "squint", free & (open_eyes > 0.4) & (open_eyes < 0.7), np.abs(open_eyes - 0.55), np.ones(len(yaw))
    yield "wide_eyes", awake & (open_eyes > 1.2) & (mouth < _OPEN_GAP), -open_eyes, openness
    yield "front", awake & (np.abs(turned) < _FRONT_RAD), np.abs(turned), openness
    yield "calm", awake & (states != SPEAK) & (np.abs(excess) < _SMILE / 2) & (frontal < 0.4), mouth, openness


def _best(frames: NDArray[np.int64], near: range, count: int) -> list[int]:
    """Places of the first frames of a ranking that are far from a clip and a quarter of a second from each other."""
    chosen: list[int] = []
    for place, frame in enumerate(frames):
        if int(frame) not in near and all(abs(int(frame) - int(frames[other])) >= _APART_FRAMES for other in chosen):
            chosen.append(place)
        if len(chosen) == count:
            break
    return chosen


class Picker:
    """Takes the references of a track's clips; each picture's face is described at most once."""

    def __init__(self, config: CurationConfig, describe_face: Callable[[Picture], NDArray[np.float32] | None]) -> None:
        self._config = config.references
        self._describe = describe_face
        self._known: dict[tuple[int, int], NDArray[np.float32] | None] = {}
        self._faces: dict[int, NDArray[np.float32] | None] = {}

    def face(self, track: int, picture: Picture) -> NDArray[np.float32] | None:
        """The descriptor of a track's person, from the first picture in which a face was found."""
        if self._faces.get(track) is None:
            self._faces[track] = self._describe(picture)
        return self._faces[track]

    def pick(
        self,
        track: int,
        choices: list[Choice],
        pictures: dict[tuple[int, int], Candidate],
        face: NDArray[np.float32] | None,
        thumbnails: NDArray[np.float32],
    ) -> list[Picked]:
        """The references of one clip.

        Args:
            track: number of the clip's person in the source.
            choices: what is wanted, the global one first.
            pictures: candidates by (track, frame).
            face: descriptor of the clip's own face; None = not known, so that likeness can't be checked.
            thumbnails: of every frame of the clip, [T, 32, 32, 3].

        Returns:
            One for each choice that has a good picture, no frame twice; empty where the global one has none.
        """
        taken: list[Picked] = []
        for choice in choices:
            found = self._first_good(track, choice, pictures, face, thumbnails, {one.frame for one in taken})
            if found is not None:
                taken.append(found)
            elif choice.kind == "global":
                return []
        return taken

    def _first_good(
        self,
        track: int,
        choice: Choice,
        pictures: dict[tuple[int, int], Candidate],
        face: NDArray[np.float32] | None,
        thumbnails: NDArray[np.float32],
        used: set[int],
    ) -> Picked | None:
        """The sharpest, most open candidate that is no copy and shows the same person."""
        worth = {
            frame: pictures[track, frame].sharpness * openness
            for frame, openness in zip(choice.frames, choice.openness, strict=True)
            if frame not in used and (track, frame) in pictures
        }
        for frame in sorted(worth, key=lambda one: (-worth[one], one)):
            picture = pictures[track, frame].picture
            distance = copy_distance(picture, thumbnails)
            if distance < self._config.min_distance:
                continue
            similarity = self._similarity(track, frame, picture, face)
            if similarity is None or similarity >= self._config.min_similarity:
                return Picked(choice=choice, frame=frame, distance=distance, similarity=similarity)
        return None

    def _similarity(self, track: int, frame: int, picture: Picture, face: NDArray[np.float32] | None) -> float | None:
        if face is None:
            return None
        if (track, frame) not in self._known:
            self._known[track, frame] = self._describe(picture)
        theirs = self._known[track, frame]
        return None if theirs is None else float(face @ theirs)


def picker(config: CurationConfig) -> Picker:
    """The picker with the face descriptor that is installed."""
    return Picker(config, describe)
