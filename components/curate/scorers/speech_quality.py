"""Speech quality by Microsoft's DNSMOS P.835 network (arXiv 2110.01763); optional."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.scorers.base import ClipView, Scorer, Scores
from components.runtime.packaged_weights import PackagedWeights, onnx_session
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, VIDEO_FPS

_WEIGHTS = PackagedWeights(
    package="speechmos",
    requirement="speechmos==0.0.1.1",
    member="dnsmos_models/sig_bak_ovr.onnx",
    sha256="269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd",
    alternative="remove speech_quality from curate.scorers.extra",
)
_RATE, _SAMPLES = 16_000, 144_160
"""The network takes 9.01 s; shorter audio is repeated, as the authors do."""
_MIN_SPEECH_S = 1.0
_FITS = (
    ("speech_signal_mos", (-0.08397278, 1.22083953, 0.0052439)),
    ("speech_background_mos", (-0.13166888, 1.60915514, -0.39604546)),
    ("speech_mos", (-0.06766283, 1.11546468, 0.04602535)),
)
"""Polynomials from the network's outputs to the listeners' scale (from the package speechmos)."""


class SpeechQuality(Scorer):
    """Mean opinion scores of voice, background and speech overall: 1 (bad) .. 5 (excellent)."""

    name, version, licence = "speech_quality", "1", "MIT"
    columns = tuple(column for column, _ in _FITS)
    weights_sha256 = _WEIGHTS.sha256

    def __init__(self) -> None:
        self.session = onnx_session(_WEIGHTS.path())

    def score(self, clip: ClipView) -> Scores:
        if (clip.analysis.speech[clip.span] > 0.5).sum() < _MIN_SPEECH_S * VIDEO_FPS:
            return dict.fromkeys(self.columns)
        track = clip.analysis.track[clip.start * SAMPLES_PER_FRAME :][: clip.frames * SAMPLES_PER_FRAME]
        return dict(mean_opinion_scores(self.session, track))


def mean_opinion_scores(session: Any, track: NDArray[np.int16]) -> dict[str, float]:
    """Return mean opinion scores by column of audio int16 [samples] at 24 kHz, averaged over windows of 9 s."""
    from scipy.signal import resample_poly

    audio = resample_poly(track.astype(np.float32) / 32768, _RATE, AUDIO_RATE).astype(np.float32)
    audio = np.resize(audio, max(len(audio), _SAMPLES))
    starts = np.linspace(0, len(audio) - _SAMPLES, -(-len(audio) // _SAMPLES)).astype(int)
    found = [session.run(None, {"input_1": audio[None, at : at + _SAMPLES]})[0][0] for at in starts]
    return {
        name: float(np.polyval(fit, values).mean())
        for (name, fit), values in zip(_FITS, np.transpose(found), strict=True)
    }
