"""What the second pass needs of a source's pictures, from what the first kept or else by decoding again."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.curate.clips.plan import Crops, Plan, rows_of
from components.curate.config import CurationConfig, SourceLimits
from components.curate.video import identity
from components.curate.video.analysis import Analysis
from components.curate.video.crops import Crop
from components.curate.video.decode import video_frames
from components.curate.video.frame import Pixels
from components.curate.video.roi_cache import Cutouts
from components.runtime import heartbeat, part_timing


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """Squares of frames that are asked for."""

    plans: list[Plan]
    """Clips."""
    references: dict[int, list[tuple[int, Crop]]]
    """Tracks whose picture may become a reference, with its square, by frame."""
    faces: dict[int, list[tuple[int, Crop]]]
    """Tracks that are recognised by a frame, with the square of the face, by frame."""

    def frames(self) -> NDArray[np.bool_]:
        """Frames of the source up to the last one of which anything is needed."""
        found = [*self.references, *self.faces]
        needed = np.zeros(max([0, *(plan.stop for plan in self.plans), *(frame + 1 for frame in found)]), bool)
        needed[found] = True
        for plan in self.plans:
            needed[plan.start : plan.stop] = True
        return needed

    def kept(self, needed: NDArray[np.bool_], cutouts: Cutouts, size_px: int) -> NDArray[np.bool_]:
        """Those of the needed `frames` of which all that is asked for was kept, for squares of a size."""
        kept = needed.copy()
        for plan in self.plans:
            kept[plan.start : plan.stop] &= cutouts.hold_all(plan.crop, plan.start, plan.stop, size_px)
        for frame, squares in self.references.items():
            kept[frame] &= all(cutouts.hold(crop, frame, size_px) for _, crop in squares)
        for frame, squares in self.faces.items():
            kept[frame] &= all(cutouts.hold(crop, frame, min(crop.side, identity.FACE_PX)) for _, crop in squares)
        return kept


def needs(plans: list[Plan], own: Analysis, crops: Crops, config: CurationConfig) -> Needs:
    """What clips, their references and the recognition of their people need."""
    wanted = {(frame, choice.track) for plan in plans for choice in plan.choices for frame in choice.frames}
    references: dict[int, list[tuple[int, Crop]]] = {}
    for frame, track in sorted(wanted):
        references.setdefault(frame, []).append((track, crops.of(track, frame, frame + 1)))
    people = {plan.track for plan in plans} | {track for _, track in wanted}
    size = own.header.width_px, own.header.height_px
    faces = {
        frame: [(track, identity.face_square(rows_of(own.tracks[track], frame, frame + 1)[0], size)) for track in shown]
        for frame, shown in identity.frames_by_number(own.tracks, people, config.identity.frames).items()
    }
    return Needs(plans=plans, references=references, faces=faces)


def footage(
    path: Path, limits: SourceLimits, asked: Needs, cutouts: Cutouts, size_px: int
) -> Iterator[tuple[int, Pixels]]:
    """(frame, its picture) of all that is asked for, in order; how far it is is told as `heartbeat` does."""
    needed = asked.frames()
    kept = asked.kept(needed, cutouts, size_px)
    found: Iterator[tuple[int, Pixels]] = ((int(frame), cutouts.picture(int(frame))) for frame in np.flatnonzero(kept))
    rest = needed & ~kept
    if rest.any():
        decoded = part_timing.waited("decoding", video_frames(path, limits, wanted=rest))
        found = heapq.merge(found, ((number, picture) for number, picture, _ in decoded), key=itemgetter(0))
    return heartbeat.counted(found, int(needed.sum()))
