"""Container properties, and the person's size, position, sharpness and head motion."""

import numpy as np

from components.curate.scorers.base import ClipView, Scorer, Scores
from components.curate.video import image_quality
from components.curate.video.faces import FEATURES

_INSIDE = 0.35
"""Fraction of another face inside the crop above which it counts as a second person."""


class Container(Scorer):
    """Height, frame rate and bit rate of the source, from its header."""

    name, version = "container", "1"
    columns = ("source_height_px", "source_fps", "bits_per_pixel")

    def score(self, clip: ClipView) -> Scores:
        header = clip.analysis.header
        pixels_per_s = max(header.width_px * header.height_px * header.fps, 1.0)
        return {
            "source_height_px": header.height_px,
            "source_fps": header.fps,
            "bits_per_pixel": header.video_bits_per_s / pixels_per_s,
        }


class Person(Scorer):
    """Size, position and sharpness of the face, and head pose (MediaPipe landmarks)."""

    name, version = "person", "3"
    columns = ("face_px", "sharpness", "face_in_frame_ratio", "one_face_ratio", "yaw_deg", "head_motion_deg")

    def score(self, clip: ClipView) -> Scores:
        boxes = clip.features[:, :4]
        count = clip.crop.shows(boxes).astype(int)
        for other in clip.others:
            count += clip.crop.shows(other) | (clip.crop.fraction_inside(other) > _INSIDE)
        yaw_deg, motion_deg = image_quality.angles_deg(clip.features[:, 6], clip.features[:, 7])
        return {
            "face_px": float(np.median(boxes[:, 3] - boxes[:, 1])),
            "sharpness": float(np.median(clip.features[:, FEATURES.index("sharpness")])),
            "face_in_frame_ratio": float(clip.crop.holds(boxes).mean()),
            "one_face_ratio": float((count == 1).mean()),
            "yaw_deg": yaw_deg,
            "head_motion_deg": motion_deg,
        }


class Copies(Scorer):
    """Fraction of the clip that copies an earlier source (video/duplicates.py finds copies across sources)."""

    name, version = "copies", "1"
    columns = ("copied_ratio",)

    def score(self, clip: ClipView) -> Scores:
        return {"copied_ratio": float(clip.copied.mean())}
