"""Analyse one source: shots, people, speech, loudness and per-frame statistics, in bounded memory."""

import dataclasses
from bisect import bisect_left
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate.config import CurationConfig
from components.curate.labels.speech import loudness_db, speech_probability
from components.curate.scorers import make_scorers, streaming_scorers
from components.curate.video.analysis import Analysis
from components.curate.video.decode import audio_track, video_frames
from components.curate.video.duplicates import EVERY, frame_hash
from components.curate.video.faces import DETECT_EVERY, FaceFinder, Tracker
from components.curate.video.frame import DecodedFrame
from components.curate.video.probe import SourceRejected, probe
from components.curate.video.reduced import Reduced, StreamedFrame, reduced
from components.curate.video.roi_cache import MIN_CACHED_PX, RoiCacheWriter
from components.curate.video.shots import ShotFinder
from components.dataset.sources import Source
from components.runtime import heartbeat, part_timing

LOADING_NETWORKS = "loading networks"
"""Name of the timed part in which a worker process loads its networks, once per pass."""
SILENT_DB = -60.0
"""Audio that never gets louder counts as silence (dB of full scale)."""
_CUT_CHANGE = 15.0
"""Change between two frames (0..255) above which a cut is assumed and tracked faces are dropped."""


def analyse(raw: Path, source: Source, config: CurationConfig, roi_cache: RoiCacheWriter | None = None) -> Analysis:
    """Decode a source once and measure it.

    Args:
        raw: corpus folder.
        source: the source.
        config: settings.
        roi_cache: receives the frame regions that the clip pass will need; None = not cached.

    Returns:
        The analysis of the whole source.

    Raises:
        SourceRejected: the source cannot be used; the reason is machine-readable.
    """
    path = raw / source.file
    with part_timing.part("header"):
        header = probe(path, config.limits)
    if config.require_audio and not header.has_audio:
        raise SourceRejected(path.name, "no_audio", "no audio track and require_audio is on")
    with part_timing.part(LOADING_NETWORKS):
        measured = _FrameMeasurements(config)
    frames = part_timing.time_items("decoding", video_frames(path, config.limits, reduced=True))
    for number, frame, new in heartbeat.track_frames(frames, round(header.duration_s * 24)):
        measured.push(number, frame, new)
        if roi_cache is not None and max(frame.size) >= MIN_CACHED_PX:
            with part_timing.part("ROI cache"):
                roi_cache.push(number, frame, measured.faces)
    with part_timing.part("tracking"):
        measured.finish()
    if measured.frames < config.limits.min_duration_s * 24:
        raise SourceRejected(path.name, "too_short", f"{measured.frames} frames at 24 fps")
    if not measured.tracker.done:
        raise SourceRejected(path.name, "no_face", f"no face in {measured.frames} frames")
    with part_timing.part("audio decoding"):
        track = audio_track(path, measured.frames, config.limits)
        loudness = loudness_db(track)
    if config.require_audio and float(loudness.max()) < SILENT_DB:
        detail = f"the audio stays below {SILENT_DB:g} dB of full scale and require_audio is on"
        raise SourceRejected(path.name, "silent_audio", detail)
    with part_timing.part("speech detection"):
        speech = speech_probability(track)
    return Analysis(
        source=source,
        header=dataclasses.replace(header, duration_s=measured.frames / 24),
        frames=measured.frames,
        shots=measured.shots.shots(),
        tracks=measured.tracker.done,
        track=track,
        speech=speech,
        loudness=loudness,
        luminance=np.array(measured.luminance, np.float32),
        change=np.array(measured.change, np.float32),
        transitions=measured.shots.transitions(),
        hashes=np.array(measured.hashes, np.uint64),
        traces={name: scorer.trace() for name, scorer in measured.scorers.items()},
    )


class _FrameMeasurements:
    """Measurements of a streamed source; each frame is downscaled once and shared by all of them."""

    def __init__(self, config: CurationConfig) -> None:
        self._stride = config.mesh_stride
        self._new_since_faces = True
        self._finder = FaceFinder(config.max_faces)
        self.tracker = Tracker(config.mesh_stride)
        self.shots = ShotFinder(config.shot_threshold)
        self.scorers = streaming_scorers(make_scorers(config.scorers))
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

    def push(self, number: int, decoded: DecodedFrame, new: bool) -> None:
        """Measure the next frame."""
        self.frames = number + 1
        self._new_since_faces |= new
        with part_timing.part("downscaling"):
            frame = reduced(number, decoded, None if new else self._last)
            self.luminance.append(float(frame.grey.mean()))
            self.change.append(self._mean_change(frame))
            self._last = frame.small, frame.grey
            if number % EVERY == 0:
                self.hashes.append(frame_hash(frame.grey))
        with part_timing.part("shots"):
            self.shots.push(frame)
        for name, scorer in self.scorers.items():
            with part_timing.part(f"stream: {name}"):
                scorer.push(frame)
        if number % self._stride == 0:
            self._find_faces(number, decoded)

    def _find_faces(self, number: int, decoded: DecodedFrame) -> None:
        """Measure the faces of a frame; a duplicate frame reuses those of the previous frame."""
        if self.change[-1] > _CUT_CHANGE:
            self._finder.reset()
        if self._new_since_faces or not self._found:
            with part_timing.part("faces"):
                faces = self._finder.find(decoded, detect=number % DETECT_EVERY < self._stride)
            self._found.append((number, faces))
        else:
            self._found.append((number, self._found[-1][1]))
        self._new_since_faces = False

    def _mean_change(self, frame: StreamedFrame) -> float:
        """Return the mean absolute change from the previous frame; NaN for the first frame and for duplicates."""
        import cv2

        if not frame.new or self._last is None:
            return float("nan")
        return float(cv2.absdiff(frame.grey, self._last[1]).mean())

    def finish(self) -> None:
        """Split the faces at shot boundaries, which are known only after the last frame, and join them into tracks."""
        self._finder.close()
        numbers = [number for number, _ in self._found]
        for shot, (start, stop) in enumerate(self.shots.shots()):
            for number, faces in self._found[bisect_left(numbers, start) : bisect_left(numbers, stop)]:
                self.tracker.push(number, faces)
            self.tracker.end_shot(shot, stop)
