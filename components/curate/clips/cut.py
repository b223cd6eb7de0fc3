"""Cut all crops of a source in one pass over its frames: clips, reference candidates, faces to embed."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from components.curate.clips.inputs import Inputs
from components.curate.clips.plan import Crops, Plan, rows_of
from components.curate.clips.references import Candidate
from components.curate.clips.store import ClipStore
from components.curate.video import identity
from components.curate.video.crops import Crop
from components.curate.video.decode import video_frames
from components.curate.video.frame import FramePixels
from components.curate.video.roi_cache import RoiCache
from components.runtime import heartbeat, part_timing


@dataclass(frozen=True, kw_only=True, slots=True)
class CropRequests:
    """The crops that a source's clips, references and people need, by frame."""

    plans: list[Plan]
    """Clips."""
    references: dict[int, list[tuple[int, Crop]]]
    """Per frame, the tracks with a reference candidate and the crop of that candidate."""
    faces: dict[int, list[tuple[int, Crop]]]
    """Per frame, the tracks whose face is embedded and the crop of that face."""

    def frames(self) -> NDArray[np.bool_]:
        """Return which frames are needed, bool [frames up to the last one needed]."""
        single = [*self.references, *self.faces]
        needed = np.zeros(max([0, *(plan.stop for plan in self.plans), *(frame + 1 for frame in single)]), bool)
        needed[single] = True
        for plan in self.plans:
            needed[plan.start : plan.stop] = True
        return needed

    def cached(self, needed: NDArray[np.bool_], roi_cache: RoiCache, size_px: int) -> NDArray[np.bool_]:
        """Return those of the needed frames whose crops are all in the ROI cache, for clips of `size_px`."""
        cached = needed.copy()
        for plan in self.plans:
            cached[plan.start : plan.stop] &= roi_cache.covers_span(plan.crop, plan.start, plan.stop, size_px)
        for frame, crops in self.references.items():
            cached[frame] &= all(roi_cache.covers(crop, frame, size_px) for _, crop in crops)
        for frame, crops in self.faces.items():
            cached[frame] &= all(roi_cache.covers(crop, frame, min(crop.side, identity.FACE_PX)) for _, crop in crops)
        return cached


@dataclass(kw_only=True, slots=True)
class SourceCrops:
    """Crops of a source other than its clips; complete once all clips are cut."""

    candidates: dict[tuple[int, int], Candidate] = field(default_factory=dict)
    """Reference candidates by (track, frame)."""
    faces: dict[int, list[NDArray[np.float32]]] = field(default_factory=dict)
    """Embeddings of each track's best faces, float32 [128] each."""


def cut_clips(
    plans: list[Plan], inputs: Inputs, crops: Crops, store: ClipStore, found: SourceCrops
) -> Iterator[tuple[Plan, NDArray[np.uint8]]]:
    """Yield each clip with its cropped frames, RGB uint8 [T, S, S, 3], in order of the clips' last frames.

    Args:
        plans: the clips.
        inputs: the source.
        crops: crops of its people.
        store: receives the images of the candidates.
        found: receives the candidates and the embeddings.
    """
    size_px = inputs.config.size_px
    requests = _requests(plans, inputs, crops)
    waiting = sorted(plans, key=lambda plan: plan.start, reverse=True)
    active: dict[str, tuple[Plan, list[NDArray[np.uint8]]]] = {}
    for number, frame in _frames(inputs, requests):
        while waiting and waiting[-1].start <= number:
            plan = waiting.pop()
            active[plan.clip_id] = plan, []
        for plan, images in active.values():
            with part_timing.part("crops"):
                images.append(plan.crop.cut(frame, size_px))
        _embed_faces(number, frame, requests, inputs, found)
        _add_candidates(number, frame, requests, inputs, store, found)
        for plan, images in [clip for clip in active.values() if clip[0].stop == number + 1]:
            del active[plan.clip_id]
            with part_timing.part("crops"):
                rgb = np.stack(images)
            images.clear()
            yield plan, rgb


def _requests(plans: list[Plan], inputs: Inputs, crops: Crops) -> CropRequests:
    analysis = inputs.analysis
    wanted = {(frame, choice.track) for plan in plans for choice in plan.choices for frame in choice.frames}
    references: dict[int, list[tuple[int, Crop]]] = {}
    for frame, track in sorted(wanted):
        references.setdefault(frame, []).append((track, crops.for_span(track, frame, frame + 1)))
    people = {plan.track for plan in plans} | {track for _, track in wanted}
    size = analysis.header.width_px, analysis.header.height_px
    by_frame = identity.frames_by_number(analysis.tracks, people, inputs.config.identity.frames)
    faces = {
        frame: [
            (track, identity.face_crop(rows_of(analysis.tracks[track], frame, frame + 1)[0], size)) for track in tracks
        ]
        for frame, tracks in by_frame.items()
    }
    return CropRequests(plans=plans, references=references, faces=faces)


def _frames(inputs: Inputs, requests: CropRequests) -> Iterator[tuple[int, FramePixels]]:
    """Yield (number, frame) of all needed frames, in order: from the ROI cache, or else decoded again."""
    cache = inputs.roi_cache
    needed = requests.frames()
    cached = requests.cached(needed, cache, inputs.config.size_px)
    frames: Iterator[tuple[int, FramePixels]] = (
        (int(number), cache.frame(int(number))) for number in np.flatnonzero(cached)
    )
    rest = needed & ~cached
    if rest.any():
        path = inputs.raw / inputs.analysis.source.file
        decoded = part_timing.time_items("decoding", video_frames(path, inputs.config.limits, wanted=rest))
        frames = heapq.merge(frames, ((number, frame) for number, frame, _ in decoded), key=itemgetter(0))
    return heartbeat.track_frames(frames, int(needed.sum()))


def _embed_faces(number: int, frame: FramePixels, requests: CropRequests, inputs: Inputs, found: SourceCrops) -> None:
    """Embed the faces on a frame by which people are identified."""
    for track, crop in requests.faces.get(number, ()):
        with part_timing.part("identity"):
            row = rows_of(inputs.analysis.tracks[track], number, number + 1)[0]
            embedding = identity.embed_in_frame(frame, crop, row)
        if embedding is not None:
            found.faces.setdefault(track, []).append(embedding)


def _add_candidates(
    number: int, frame: FramePixels, requests: CropRequests, inputs: Inputs, store: ClipStore, found: SourceCrops
) -> None:
    """Store the reference candidates on a frame."""
    size_px = inputs.config.size_px
    for track, crop in requests.references.get(number, ()):
        with part_timing.part("reference candidates"):
            row = rows_of(inputs.analysis.tracks[track], number, number + 1)[0]
            found.candidates[track, number] = Candidate(
                image=store.add_candidate(crop.cut(frame, size_px)), row=crop.to_crop_px(row, size_px)
            )
