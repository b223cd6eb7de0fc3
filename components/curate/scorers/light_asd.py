"""Agreement of the labels with Light-ASD, an active-speaker network whose weights the user supplies."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from components.curate.config import ScorerConfig
from components.curate.scorers.base import ClipView, Scorer, Scores, weights_file
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, STATES, VIDEO_FPS
from lpm_model.digests import file_digest

if TYPE_CHECKING:
    from components.curate.scorers.light_asd_net import LightAsdNet

_MEDIAN = 13
"""Frames of the median filter over a face's position."""
_SMOOTH = 5
"""Frames over which scores are averaged, as the authors do."""
_LONGEST = 150
"""Faces (6 s) per forward pass."""
_OUTSIDE = 110
_BOX_SCALE = 1.2
"""The face detector used in the network's training draws larger boxes than the face mesh: with this factor the listener
of a real two-person shot scores -0.67 (speaker 5.07), without it -0.09 (4.85)."""


class LightAsd(Scorer):
    """Agreement of an audiovisual network with the labels, over frames with anybody's speech.

    asd_speak_agreement: fraction of frames on which network and label agree whether the person speaks. asd_score: mean
    score of the network, above 0 if the person speaks. Pauses are excluded because the network still reports speech.
    """

    name, version, licence = "light_asd", "1", "MIT"
    columns = ("asd_speak_agreement", "asd_score")

    def __init__(self, net: "LightAsdNet") -> None:
        self._net = net

    @classmethod
    def make(cls, config: ScorerConfig) -> Self:
        from components.curate.scorers.light_asd_net import load

        return cls(load(_weights_path(config)))

    @classmethod
    def weights_digest(cls, config: ScorerConfig) -> str | None:
        return file_digest(_weights_path(config))

    def score(self, clip: ClipView) -> Scores:
        voiced = clip.analysis.speech[clip.span] > 0.5
        if not voiced.any():
            return dict.fromkeys(self.columns)
        scores = speaking_scores(self._net, clip)[voiced]
        agrees = (scores > 0) == (clip.states[voiced] == STATES["speak"])
        return {"asd_speak_agreement": float(agrees.mean()), "asd_score": float(scores.mean())}


def _weights_path(config: ScorerConfig) -> Path:
    return weights_file("light_asd", config.light_asd)


def speaking_scores(net: "LightAsdNet", clip: ClipView) -> NDArray[np.float32]:
    """Return the network's score of each frame of a clip, float32 [T]; above 0 the person speaks."""
    import torch

    from components.curate.scorers.light_asd_net import FPS, PER_FACE

    count = max(clip.frames * FPS // VIDEO_FPS, 1)
    at = np.arange(count) * VIDEO_FPS // FPS  # index of the 24 fps frame shown at each 25 fps time
    faces = torch.from_numpy(mouth_crops(clip)[at].astype(np.float32))
    spectra = torch.from_numpy(_spectra(clip, count * PER_FACE))
    with torch.inference_mode():
        found = [
            net(faces[a : a + _LONGEST], spectra[a * PER_FACE : (a + _LONGEST) * PER_FACE])
            for a in range(0, count, _LONGEST)
        ]
    scores = np.interp(np.arange(clip.frames) / VIDEO_FPS, np.arange(count) / FPS, torch.cat(found).numpy())
    padded = np.pad(scores, _SMOOTH // 2, mode="edge")
    return np.convolve(padded, np.full(_SMOOTH, 1 / _SMOOTH), "valid").astype(np.float32)


def _spectra(clip: ClipView, count: int) -> NDArray[np.float32]:
    """Return the first `count` MFCC vectors of a clip's audio, float32 [count, 13]."""
    from scipy.signal import resample_poly

    from components.curate.scorers.light_asd_net import RATE, mfcc

    track = clip.analysis.track[clip.start * SAMPLES_PER_FRAME :][: clip.frames * SAMPLES_PER_FRAME]
    audio = resample_poly(track.astype(np.float64), RATE, AUDIO_RATE)
    return mfcc(np.pad(audio, (0, RATE // 10)))[:count]


def mouth_crops(clip: ClipView) -> NDArray[np.uint8]:
    """Return grey crops [T, 112, 112] around the mouth, as in the network's training, uint8.

    A crop is 0.7 of the detected face's longer side wide and starts 0.15 of it above the face's centre.
    """
    import cv2
    from scipy.ndimage import median_filter

    from components.curate.scorers.light_asd_net import SIDE_PX

    boxes = (clip.features[:, :4] - np.array([clip.crop.x, clip.crop.y] * 2)) * (clip.rgb.shape[1] / clip.crop.side)
    known = ~np.isnan(boxes[:, 0])
    frames = np.arange(clip.frames)
    x0, y0, x1, y1 = (np.interp(frames, frames[known], boxes[known, i]) for i in range(4))
    half = _BOX_SCALE * np.maximum(x1 - x0, y1 - y0) / 2
    half, x, y = (median_filter(values, _MEDIAN, mode="nearest") for values in (half, (x0 + x1) / 2, (y0 + y1) / 2))
    out = np.empty((clip.frames, SIDE_PX, SIDE_PX), np.uint8)
    for i, frame in enumerate(clip.rgb):
        scale = SIDE_PX / (1.4 * half[i])
        place = np.array([[scale, 0, -scale * (x[i] - 0.7 * half[i])], [0, scale, -scale * (y[i] - 0.3 * half[i])]])
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        out[i] = cv2.warpAffine(grey, place, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR, borderValue=_OUTSIDE)
    return out
