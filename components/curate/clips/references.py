"""Reference images of the same person from outside a clip's span: a global one, head views and expressions.

Candidate frames are chosen from the tracks, before any image is cut: from the clip's own shot, and what that lacks from
other shots of the source. Then the images decide: sharp ones with open eyes first, never a copy of a frame of the clip,
never another person.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.expressions import OPEN_GAP, expression_strengths, neutral_face
from components.curate.config import CurationConfig
from components.curate.video import identity
from components.curate.video.faces import FEATURES, Track
from components.curate.video.image_similarity import image_distance
from components.dataset.states import DISCARD, SPEAK
from lpm_model.config import VIDEO_FPS

VIEWS = {"front": "view_0", "left": "view_1", "right": "view_2"}
"""Head views by angle; view_3, the back of the head, is invisible to a face tracker."""
EXPRESSIONS = {
    name: f"expression_{slot}"
    for slot, name in enumerate(("smile", "laugh", "surprise", "talk", "sad", "frown", "calm", "wide_eyes"))
}
"""Expressions that landmarks can distinguish, each in its own slot."""
NO_REFERENCE = "no_reference"
"""Drop reason: the person is never clearly visible outside the clip."""
NEAR_COPY = "references_are_copies"
"""Drop reason: all candidates of a global reference are copies of the clip's frames, or show somebody else."""
REFERENCE_REASONS = (NO_REFERENCE, NEAR_COPY)
"""Reasons to drop a clip that passes all thresholds."""
_MIN_SPACING_FRAMES = 6
_SHARPNESS = FEATURES.index("sharpness")
_MAX_NEARBY, _MIN_TRACK_FRAMES = 6, 24
"""Maximum number of tracks in other shots that are searched for missing kinds, and their minimum frames."""
_TURN_RAD, _FRONT_RAD = 0.30, 0.15

Image = NDArray[np.uint8]
"""RGB, uint8 [S, S, 3]."""
Embed = Callable[[Image, NDArray[np.float32]], NDArray[np.float32] | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A kind of reference and the frames of one track that it may come from."""

    kind: str
    """One of lpm_model.config.REFERENCE_KINDS."""
    shows: str
    """global, or a name of VIEWS or EXPRESSIONS."""
    track: int
    """Number of the track in the source."""
    frames: list[int]
    """Candidate frames of the source."""
    openness: list[float]
    """How open the eyes (and the mouth, if the expression needs it) are on each of them, 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One candidate of a reference."""

    image: Callable[[], Image]
    """Reads its crop from disk: the candidates of a long video would not fit into memory."""
    row: NDArray[np.float32]
    """The face's features (see faces.FEATURES), box and points in pixels of the crop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picked:
    """A chosen reference."""

    choice: Choice
    """Its kind."""
    frame: int
    """Frame of the source."""
    distance: float
    """Perceptual distance to the nearest frame of the clip."""
    identity_distance: float | None
    """Distance of its face to the mean face of the clip's person; None where one of them is unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The candidate frames of one track for one kind of reference, the best first."""

    shows: str
    """global, or a name of VIEWS or EXPRESSIONS."""
    track: int
    """Number of the track in the source."""
    frames: NDArray[np.int64]
    """Frames of the source."""
    openness: NDArray[np.float64]
    """How open eyes and mouth are on each of them, 0..1."""

    @property
    def kind(self) -> str:
        """One of lpm_model.config.REFERENCE_KINDS."""
        return VIEWS.get(self.shows) or EXPRESSIONS.get(self.shows) or "global"


def rank_frames(number: int, track: Track, states: NDArray[np.uint8]) -> list[Ranking]:
    """Rank the frames of a person's track for every kind of reference, once for all clips.

    Args:
        number: number of the track in the source.
        track: the person.
        states: the person's states, uint8 [T].

    Returns:
        The rankings, the most valuable kinds of reference first.
    """
    found = []
    for shows, allowed, cost, openness in _candidate_frames(track, states, track.seen & (states != DISCARD)):
        order = np.flatnonzero(allowed)
        order = order[np.argsort(cost[order], kind="stable")]
        found.append(Ranking(shows=shows, track=number, frames=track.start + order, openness=openness[order]))
    return found


def nearby_tracks(tracks: Sequence[Track], number: int) -> list[int]:
    """Return tracks in other shots that may show a track's person, the nearest in time first."""
    reference = tracks[number]
    frames_away = {
        other: max(track.start - reference.stop, reference.start - track.stop)
        for other, track in enumerate(tracks)
        if track.shot != reference.shot and len(track.values) >= _MIN_TRACK_FRAMES
    }
    return sorted(frames_away, key=lambda other: (frames_away[other], other))[:_MAX_NEARBY]


def choose_references(
    own: list[Ranking], other_shots: Sequence[list[Ranking]], start: int, frames: int, config: CurationConfig
) -> list[Choice]:
    """Choose the candidates of one clip's references: from its own track, and missing kinds from other shots.

    Args:
        own: rankings of the clip's track.
        other_shots: rankings of tracks in other shots, in the same order.
        start: the clip's first frame in the source.
        frames: the clip's length.
        config: how many references.

    Returns:
        Choices of a global reference first; empty where there are none.
    """
    guard = round(config.references.guard_s * VIDEO_FPS)
    near = range(start - guard, start + frames + guard)
    found: list[list[Choice]] = []
    slots = _Slots(config)
    for at, ranking in enumerate(own):
        if slots.full(ranking.kind):
            continue
        best = _best_choice(ranking, near, config.references.candidates)
        if best is None:
            count = config.references.candidates if ranking.kind == "global" else 1
            offered = [_best_choice(rankings[at], near, count) for rankings in other_shots]
            found.append([choice for choice in offered if choice is not None])
        else:
            found.append([best])
            slots.take(ranking.kind)
        if not found[0]:
            return []
    return [choice for choices in found for choice in choices]


class _Slots:
    """Counts how many references of each kind a clip may still get."""

    def __init__(self, config: CurationConfig) -> None:
        self._left = {"view": config.references.max_views, "expression": config.references.max_expressions, "global": 1}
        self._all = config.max_references

    def full(self, kind: str) -> bool:
        """Return whether all slots of a kind are used."""
        return self._all == 0 or self._left[kind.partition("_")[0]] == 0

    def take(self, kind: str) -> None:
        """Use one slot of a kind."""
        self._left[kind.partition("_")[0]] -= 1
        self._all -= 1


_CandidateFrames = tuple[str, NDArray[np.bool_], NDArray[Any], NDArray[Any]]


def _candidate_frames(track: Track, states: NDArray[np.uint8], free: NDArray[np.bool_]) -> Iterator[_CandidateFrames]:
    """Yield (view or expression, frames that show it, cost by frame, openness by frame), most valuable first."""
    yaw, eyes, pitch = (track.column(name) for name in ("yaw", "eyes", "pitch"))
    found = expression_strengths(track.values, neutral_face(track, states))
    shown = {name: np.nan_to_num(values) for name, values in found.items()}
    open_eyes = np.clip(np.nan_to_num(eyes, nan=0.0) / max(float(np.nanmedian(eyes)), 1e-6), 0.0, 2.0)
    awake = free & (open_eyes > 0.75)
    openness = np.minimum(open_eyes, 1.0)
    frontal = np.nan_to_num(np.hypot(yaw, pitch - np.nanmedian(pitch)), nan=9.0)
    mouth = np.nan_to_num(track.column("gap"), nan=0.0)
    wide_mouth = np.clip(mouth / OPEN_GAP, 0.0, 1.0)
    closed = mouth < OPEN_GAP
    moved = np.max([np.abs(values) for values in shown.values()], axis=0)
    calm = frontal + 2.0 * mouth + 0.02 * np.abs(shown["smile"]) + 0.2 * (states == SPEAK)
    usual = float(np.nanmedian(yaw))
    head_yaw = np.nan_to_num(yaw, nan=usual)
    yield "global", awake & (frontal < 0.6), calm, openness
    yield "smile", awake & (shown["smile"] > 1) & closed, -shown["smile"], openness
    yield "left", awake & (head_yaw < -_TURN_RAD), head_yaw, openness
    yield "right", awake & (head_yaw > _TURN_RAD), -head_yaw, openness
    yield "laugh", awake & (shown["smile"] > 1) & ~closed, -shown["smile"] - mouth, openness * wide_mouth
    yield "surprise", awake & (shown["surprise"] > 1), -shown["surprise"], openness
    yield "talk", awake & (states == SPEAK) & ~closed, -mouth, openness * wide_mouth
    yield "sad", awake & (shown["sad"] > 1), -shown["sad"], openness
    yield "frown", awake & (shown["frown"] > 1), -shown["frown"], np.ones(len(yaw))
    yield "wide_eyes", awake & (shown["wide_eyes"] > 1) & (shown["surprise"] < 1), -shown["wide_eyes"], openness
    yield "front", awake & (np.abs(head_yaw) < _FRONT_RAD), np.abs(head_yaw), openness
    yield "calm", awake & (states != SPEAK) & (moved < 0.5) & (frontal < 0.4), mouth, openness


def _best_choice(ranking: Ranking, near: range, count: int) -> Choice | None:
    """Return the first frames of a ranking that are far from a clip and a quarter of a second from each other."""
    chosen: list[int] = []
    for place, frame in enumerate(ranking.frames):
        if int(frame) not in near and all(
            abs(int(frame) - int(ranking.frames[other])) >= _MIN_SPACING_FRAMES for other in chosen
        ):
            chosen.append(place)
        if len(chosen) == count:
            break
    if not chosen:
        return None
    return Choice(
        kind=ranking.kind,
        shows=ranking.shows,
        track=ranking.track,
        frames=[int(ranking.frames[i]) for i in chosen],
        openness=[float(ranking.openness[i]) for i in chosen],
    )


class ReferencePicker:
    """Picks the references of a source's clips; each candidate's face is embedded at most once, and only if needed."""

    def __init__(
        self, config: CurationConfig, people: NDArray[np.float32], limit: float, embed: Embed = identity.embed
    ) -> None:
        """Start a picker for one source.

        Args:
            config: how many references.
            people: mean embedding of each track [tracks, 128]; NaN where unknown.
            limit: distance below which two tracks show one person.
            embed: returns the embedding of the face in an image, given its features.
        """
        self._config, self._people, self._limit, self._embed = config, people, limit, embed
        self._embeddings: dict[tuple[int, int], NDArray[np.float32] | None] = {}

    def pick(
        self,
        track: int,
        choices: list[Choice],
        candidates: dict[tuple[int, int], Candidate],
        thumbnails: NDArray[np.float32],
    ) -> list[Picked]:
        """Pick the references of one clip.

        Args:
            track: number of the clip's person in the source.
            choices: the wanted kinds, the global one first.
            candidates: images by (track, frame).
            thumbnails: of every frame of the clip, float32 [T, 32, 32, 3].

        Returns:
            One for each kind that has a good candidate, no frame twice; empty if the global one has none.
        """
        taken: list[Picked] = []
        slots = _Slots(self._config)
        for choice in choices:
            kinds = {one.choice.kind for one in taken}
            if choice.kind != "global" and "global" not in kinds:
                return []
            if choice.kind in kinds or slots.full(choice.kind) or not self._same_person(track, choice.track):
                continue
            found = self._first_good(track, choice, candidates, thumbnails, {one.frame for one in taken})
            if found is not None:
                taken.append(found)
                slots.take(choice.kind)
        return taken

    def _same_person(self, track: int, other: int) -> bool:
        """Return whether two tracks are known to show one person."""
        if track == other:
            return True
        distance = float(np.linalg.norm(self._people[track] - self._people[other]))  # NaN where one is unknown
        return distance < self._limit

    def _first_good(
        self,
        track: int,
        choice: Choice,
        candidates: dict[tuple[int, int], Candidate],
        thumbnails: NDArray[np.float32],
        used: set[int],
    ) -> Picked | None:
        """Return the sharpest candidate with the most open eyes that is no copy and shows the same person."""
        quality = {
            frame: float(candidates[choice.track, frame].row[_SHARPNESS]) * openness
            for frame, openness in zip(choice.frames, choice.openness, strict=True)
            if frame not in used and (choice.track, frame) in candidates
        }
        for frame in sorted(quality, key=lambda one: (-quality[one], one)):
            candidate = candidates[choice.track, frame]
            distance = image_distance(candidate.image(), thumbnails)
            if distance < self._config.references.min_distance:
                continue
            found = self._identity_distance(track, (choice.track, frame), candidate)
            if found is None or found < self._limit + identity.ONE_FACE_DISTANCE:
                return Picked(choice=choice, frame=frame, distance=distance, identity_distance=found)
        return None

    def _identity_distance(self, track: int, place: tuple[int, int], candidate: Candidate) -> float | None:
        """Return the distance of a candidate's face to the clip's person; None where one of them is unknown."""
        if np.isnan(self._people[track, 0]):
            return None
        if place not in self._embeddings:
            self._embeddings[place] = self._embed(candidate.image(), candidate.row)
        face = self._embeddings[place]
        return None if face is None else float(np.linalg.norm(face - self._people[track]))
