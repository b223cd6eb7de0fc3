"""Light and colour of a clip, frozen frames and black bars."""

import numpy as np

from components.curate.scorers.base import ClipView, Scorer, Scores
from components.curate.video import image_quality
from lpm_model.config import VIDEO_FPS

_WHITE, _BLACK = 250, 12
_SKIN_MIDDLE = np.array([0.35, -0.2])
_SKIN_REACH = np.array([0.25, 0.2])
"""Human skin of any tone under neutral light: an ellipse of log(red / green) and log(blue / green), which are
independent of brightness."""


class Light(Scorer):
    """Luminance, clipped whites and blacks, flicker, and colour cast (measured on the skin of the face)."""

    name, version = "light", "2"
    columns = ("luminance", "white_ratio", "black_ratio", "flicker_ratio", "colour_cast")

    def score(self, clip: ClipView) -> Scores:
        import cv2

        red, green, blue = np.moveaxis(clip.sampled_rgb, 3, 0)
        brightest, darkest = (fold(fold(red, green), blue) for fold in (np.maximum, np.minimum))
        level = clip.analysis.luminance[clip.span].astype(np.float64)
        # Compared with both neighbours: movement changes the mean slowly, flicker does not.
        flicker = level[1:-1] - (level[:-2] + level[2:]) / 2
        return {
            "luminance": float(np.mean(cv2.mean(clip.rgb.reshape(-1, clip.rgb.shape[2], 3))[:3])),
            "white_ratio": float((darkest >= _WHITE).mean()),
            "black_ratio": float((brightest <= _BLACK).mean()),
            "flicker_ratio": float(np.sqrt((flicker**2).mean()) / max(level.mean(), 1.0)),
            "colour_cast": _skin_distance(clip),
        }


def _skin_distance(clip: ClipView) -> float | None:
    """Return the distance of the face's colour from the skin ellipse in radii; 0 inside."""
    size = clip.sampled_rgb.shape[1]
    x0, y0, x1, y1 = clip.face_box
    # The middle of the face: cheeks, nose and mouth, without hair and background.
    left, right = int(size * (0.75 * x0 + 0.25 * x1)), int(size * (0.25 * x0 + 0.75 * x1))
    top, bottom = int(size * (0.6 * y0 + 0.4 * y1)), int(size * (0.2 * y0 + 0.8 * y1))
    part = clip.sampled_rgb[::4, max(top, 0) : bottom, max(left, 0) : right]
    if part.size == 0:
        return None
    red, green, blue = np.log(np.median(part.reshape(-1, 3), axis=0) + 0.25)
    away = (np.array([red - green, blue - green]) - _SKIN_MIDDLE) / _SKIN_REACH
    return max(float(np.hypot(*away)) - 1.0, 0.0)


class Stillness(Scorer):
    """Frozen frames and black bars."""

    name, version = "stillness", "2"
    columns = ("frozen_s", "static_ratio", "letterbox_ratio")

    def score(self, clip: ClipView) -> Scores:
        return {
            "frozen_s": image_quality.longest_frozen(clip.analysis.change[clip.span][1:]) / VIDEO_FPS,
            "static_ratio": image_quality.static_ratio(clip.analysis.change[clip.span][1:]),
            "letterbox_ratio": image_quality.letterbox_ratio(clip.sampled_rgb),
        }
