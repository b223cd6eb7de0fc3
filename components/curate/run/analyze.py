"""First pass over one source: shots, people, speech, loudness and per-frame picture statistics, in bounded memory."""

import dataclasses
from bisect import bisect_left
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.labels.speech import loudness_db, speech_probability
from components.curate.scorers import make_scorers, watchers
from components.curate.video.analysis import Analysis
from components.curate.video.decode import audio_track, video_frames
from components.curate.video.duplicates import EVERY, picture_hash
from components.curate.video.faces import LOOK_EVERY, FaceFinder, Tracker
from components.curate.video.frame import Picture
from components.curate.video.probe import SourceRejected, probe
from components.curate.video.reduced import Frame, Reduced, reduced
from components.curate.video.roi_cache import WORTH_PX, CutoutWriter
from components.curate.video.shots import ShotFinder
from components.dataset.sources import Source
from components.runtime import heartbeat, part_timing

STARTING = "starting networks"
"""Part of the cost that a worker process pays once."""
SILENT_DB = -60.0
"""Sound that never gets louder is none."""


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
    with part_timing.part("header"):
        header = probe(path, config.limits)
    if config.require_audio and not header.has_audio:
        raise SourceRejected(path.name, "no_audio", "no sound track and require_audio is on")
    with part_timing.part(STARTING):
        seen = _Watcher(config)
    frames = part_timing.waited("decoding", video_frames(path, config.limits, reduced=True))
    for number, picture, new in heartbeat.counted(frames, round(header.duration_s * 24)):
        seen.push(number, picture, new)
        if cutouts is not None and max(picture.size) >= WORTH_PX:
            with part_timing.part("keeping pictures"):
                cutouts.push(number, picture, seen.faces)
    with part_timing.part("people"):
        seen.finish()
    if seen.frames < config.limits.min_duration_s * 24:
        raise SourceRejected(path.name, "too_short", f"{seen.frames} frames at 24 fps")
    if not seen.tracker.done:
        raise SourceRejected(path.name, "no_face", f"no face in {seen.frames} frames")
    with part_timing.part("sound"):
        track = audio_track(path, seen.frames, config.limits)
        loudness = loudness_db(track)
    if config.require_audio and float(loudness.max()) < SILENT_DB:
        detail = f"the sound stays below {SILENT_DB:g} dB of full scale and require_audio is on"
        raise SourceRejected(path.name, "silent_audio", detail)
    with part_timing.part("voice"):
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
        with part_timing.part("reduced pictures"):
            frame = reduced(number, picture, None if new else self._last)
            self.luminance.append(float(frame.grey.mean()))
            self.change.append(self._changed(frame))
            self._last = frame.small, frame.grey
            if number % EVERY == 0:
                self.hashes.append(picture_hash(frame.grey))
        with part_timing.part("shots"):
            self.shots.push(frame)
        for name, watcher in self.watchers.items():
            with part_timing.part(f"watch: {name}"):
                watcher.push(frame)
        if number % self._stride == 0:
            if self.change[-1] > 15:  # most likely a cut: the network must look for faces anew
                self._finder.reset()
            if self._unseen or not self._found:
                with part_timing.part("faces"):
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
