"""First pass over one source: shots, people, speech, loudness and per-frame picture statistics, in bounded memory."""

import dataclasses
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate import cost, heartbeat
from components.curate.config import CurationConfig
from components.curate.cutouts import WORTH_PX, CutoutWriter
from components.curate.decode import audio_track, video_frames
from components.curate.duplicates import EVERY, picture_hash
from components.curate.faces import LOOK_EVERY, FaceFinder, Track, Tracker
from components.curate.manifest import Source
from components.curate.picture import Picture
from components.curate.probe import Probe, SourceRejected, probe
from components.curate.scorers import make_scorers, watchers
from components.curate.scorers.base import Frame, Reduced, reduced
from components.curate.shots import ShotFinder
from components.curate.speech import loudness_db, speech_probability

STARTING = "starting networks"
"""Part of the cost that a worker process pays once."""
SILENT_DB = -60.0
"""Sound that never gets louder is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """What the first pass knows about one source; small enough to keep for every source."""

    source: Source
    """The line of sources.jsonl."""
    header: Probe
    """The file's header."""
    frames: int
    """Frames at 24 fps."""
    shots: list[tuple[int, int]]
    """First frame and frame after the last, per shot."""
    tracks: list[Track]
    """People, in order of appearance."""
    track: NDArray[np.int16]
    """Sound, int16 [frames * 1000]."""
    speech: NDArray[np.float32]
    """Probability of speech by frame."""
    loudness: NDArray[np.float32]
    """dB of full scale by frame."""
    luminance: NDArray[np.float32]
    """Mean grey value 0..255 by frame."""
    change: NDArray[np.float32]
    """Mean absolute change from the source picture before, 0..255; NaN where a picture is shown again."""
    transitions: list[tuple[int, int, str]]
    """First frame, frame after the last and kind (cut or dissolve) of what lies between shots."""
    hashes: NDArray[np.uint64]
    """Perceptual hash of every duplicates.EVERY-th frame."""
    traces: dict[str, NDArray[np.float32]]
    """What the scorers' watchers kept, by scorer: [rows, columns], column 0 is the frame."""


def analyse(raw: Path, source: Source, config: CurationConfig, cutouts: CutoutWriter | None = None) -> Analysis:
    """Decode a source once and measure it.

    Args:
        raw: corpus folder.
        source: the source.
        config: settings.
        cutouts: takes in what the second pass will need of its pictures.

    Raises:
        SourceRejected: it cannot be used; the reason is machine-readable.
    """
    path = raw / source.file
    with cost.part("header"):
        header = probe(path, config.limits)
    if config.require_audio and not header.has_audio:
        raise SourceRejected(path.name, "no_audio", "no sound track and require_audio is on")
    with cost.part(STARTING):
        seen = _Watcher(config)
    frames = cost.waited("decoding", video_frames(path, config.limits, reduced=True))
    for number, picture, new in heartbeat.counted(frames, round(header.duration_s * 24)):
        seen.push(number, picture, new)
        if cutouts is not None and max(picture.size) >= WORTH_PX:
            with cost.part("keeping pictures"):
                cutouts.push(number, picture, seen.faces)
    with cost.part("people"):
        seen.finish()
    if seen.frames < config.limits.min_duration_s * 24:
        raise SourceRejected(path.name, "too_short", f"{seen.frames} frames at 24 fps")
    if not seen.tracker.done:
        raise SourceRejected(path.name, "no_face", f"no face in {seen.frames} frames")
    with cost.part("sound"):
        track = audio_track(path, seen.frames, config.limits)
        loudness = loudness_db(track)
    if config.require_audio and float(loudness.max()) < SILENT_DB:
        detail = f"the sound stays below {SILENT_DB:g} dB of full scale and require_audio is on"
        raise SourceRejected(path.name, "silent_audio", detail)
    with cost.part("voice"):
        speech = speech_probability(track)
    return Analysis(
        source=source,
        header=dataclasses.replace(header, duration_s=seen.frames / 24),
        frames=seen.frames,
        shots=seen.shots.shots(),
        tracks=seen.tracker.done,
        track=track,
        speech=speech,
        loudness=loudness,
        luminance=np.array(seen.luminance, np.float32),
        change=np.array(seen.change, np.float32),
        transitions=seen.shots.transitions(),
        hashes=np.array(seen.hashes, np.uint64),
        traces={name: watcher.trace() for name, watcher in seen.watchers.items()},
    )


class _Watcher:
    """Everything that watches the frames stream by; each frame is reduced once for all of them."""

    def __init__(self, config: CurationConfig) -> None:
        self._stride = config.mesh_stride
        self._unseen = True
        self._finder = FaceFinder(config.max_faces)
        self.tracker = Tracker(config.mesh_stride)
        self.shots = ShotFinder(config.shot_threshold)
        self.watchers = watchers(make_scorers(config.scorers))
        self.luminance: list[float] = []
        self.change: list[float] = []
        self.hashes: list[int] = []
        self.frames = 0
        self._found: list[tuple[int, list[NDArray[np.float32]]]] = []
        self._last: Reduced | None = None

    @property
    def faces(self) -> list[NDArray[np.float32]]:
        """Features of the faces of the last measured frame."""
        return self._found[-1][1]

    def push(self, number: int, picture: Picture, new: bool) -> None:
        self.frames = number + 1
        self._unseen |= new
        with cost.part("reduced pictures"):
            frame = reduced(number, picture, None if new else self._last)
            self.luminance.append(float(frame.grey.mean()))
            self.change.append(self._changed(frame))
            self._last = frame.small, frame.grey
            if number % EVERY == 0:
                self.hashes.append(picture_hash(frame.grey))
        with cost.part("shots"):
            self.shots.push(frame)
        for name, watcher in self.watchers.items():
            with cost.part(f"watch: {name}"):
                watcher.push(frame)
        if number % self._stride == 0:
            if self.change[-1] > 15:  # most likely a cut: the network must look for faces anew
                self._finder.reset()
            if self._unseen or not self._found:
                with cost.part("faces"):
                    faces = self._finder.find(picture, anew=number % LOOK_EVERY < self._stride)
                self._found.append((number, faces))
            else:  # the same picture again has the same faces
                self._found.append((number, self._found[-1][1]))
            self._unseen = False

    def _changed(self, frame: Frame) -> float:
        """Mean absolute change from the frame before; NaN for the first one and for one that is shown again."""
        import cv2

        if not frame.new or self._last is None:
            return float("nan")
        return float(cv2.absdiff(frame.grey, self._last[1]).mean())

    def finish(self) -> None:
        """Cut the found faces at the shots (known only afterwards) and join them into people."""
        self._finder.close()
        numbers = [number for number, _ in self._found]
        for shot, (start, stop) in enumerate(self.shots.shots()):
            for number, faces in self._found[bisect_left(numbers, start) : bisect_left(numbers, stop)]:
                self.tracker.push(number, faces)
            self.tracker.end_shot(shot, stop)
