"""Audio measurements: speech, noise, music, speech rate and pitch."""

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.prosody import pitch_hz
from components.curate.scorers.base import ClipView, Scorer, Scores
from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME, STATES
from lpm_model.encoders.mel import mel_filters

_WINDOW = 2048
_TUNE_HZ = (100.0, 3000.0)
_SUSTAINED_FRAMES = 3
"""Frames (an eighth of a second) over which a sustained tone keeps its spectrum, unlike a voice."""
_MIN_SUSTAINED_SIMILARITY = 0.75
"""Cosine similarity of two spectra _SUSTAINED_FRAMES apart above which they are one sustained tone."""
_AUDIBLE_DB = -50.0
_HIGHEST_VOICE_HZ, _MIN_VOICED = 600.0, 12
_PACE_WINDOW, _PACE_RATE = 512, 100
_MIN_SPEECH_S = 0.8


class Audio(Scorer):
    """Speech ratio, noise level, music ratio (sustained tones), speech pace and pitch of the voices."""

    name, version = "audio", "2"
    columns = ("speech_ratio", "sound_db", "noise_db", "snr_db", "music_ratio", "speech_pace", "voice_hz")

    def score(self, clip: ClipView) -> Scores:
        level, speech = clip.analysis.loudness[clip.span], clip.analysis.speech[clip.span] > 0.5
        track = clip.analysis.track[clip.start * SAMPLES_PER_FRAME :][: clip.frames * SAMPLES_PER_FRAME]
        noise_db = float(np.percentile(level, 10))
        voice_db = float(np.median(level[speech])) if speech.any() else None
        return {
            "speech_ratio": float(np.isin(clip.states, (STATES["speak"], STATES["listen"])).mean()),
            "sound_db": float(np.percentile(level, 95)),
            "noise_db": noise_db,
            "snr_db": None if voice_db is None else voice_db - noise_db,
            "music_ratio": music_ratio(track, level),
            "speech_pace": speech_pace(track, speech),
            "voice_hz": voice_hz(track, level),
        }


class LabelQuality(Scorer):
    """Confidence of the state labels, and the fraction of the voice that belongs to no conversation."""

    name, version = "labels", "2"
    columns = ("confidence", "offscreen_voice_ratio")

    def score(self, clip: ClipView) -> Scores:
        voiced = clip.analysis.speech[clip.span] > 0.5
        ratio = float((voiced & clip.offscreen_speech).sum() / max(int(voiced.sum()), 1))
        return {"confidence": float(clip.confidence.mean()), "offscreen_voice_ratio": ratio}


def music_ratio(track: NDArray[np.int16], level_db: NDArray[np.float32]) -> float:
    """Return the fraction of frames with sustained tones, as in music, ringing or hum.

    Args:
        track: int16 [frames * 1000].
        level_db: loudness of the frames [frames].
    """
    frames = len(level_db)
    if frames <= _SUSTAINED_FRAMES:
        return 0.0
    padded = np.pad(track.astype(np.float32) / 32768, (_WINDOW - SAMPLES_PER_FRAME) // 2 + 1)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::SAMPLES_PER_FRAME][:frames]
    power = np.abs(np.fft.rfft(pieces * np.hanning(_WINDOW), axis=1))
    low, high = (round(hz * _WINDOW / AUDIO_RATE) for hz in _TUNE_HZ)
    fine = np.log(power[:, low:high] + 1e-5)
    kernel = np.ones(15) / 15
    smooth = np.apply_along_axis(np.convolve, 1, np.pad(fine, ((0, 0), (7, 7)), mode="edge"), kernel, mode="valid")
    fine = np.maximum(fine - smooth, 0.0)  # the peaks of the spectrum, without its slope
    fine /= np.linalg.norm(fine, axis=1, keepdims=True) + 1e-9
    similarity = (fine[_SUSTAINED_FRAMES:] * fine[:-_SUSTAINED_FRAMES]).sum(axis=1)
    loud = (level_db > _AUDIBLE_DB)[_SUSTAINED_FRAMES:] & (level_db > _AUDIBLE_DB)[:-_SUSTAINED_FRAMES]
    return float(((similarity > _MIN_SUSTAINED_SIMILARITY) & loud).sum() / (frames - _SUSTAINED_FRAMES))


def voice_hz(track: NDArray[np.int16], level_db: NDArray[np.float32]) -> float | None:
    """Return the median pitch of the louder half of the frames (Hz), None if fewer than 12 are loud and voiced.

    Frames are selected by loudness because a voice activity detector fails on a voice played at double speed.

    Args:
        track: int16 [frames * 1000].
        level_db: loudness of the frames [frames].
    """
    loud = (level_db >= np.median(level_db)) & (level_db > _AUDIBLE_DB)
    found = pitch_hz(track, loud, _HIGHEST_VOICE_HZ)
    voiced = found[~np.isnan(found)]
    return float(np.median(voiced)) if len(voiced) >= _MIN_VOICED else None


def speech_pace(track: NDArray[np.int16], speech: NDArray[np.bool_]) -> float | None:
    """Return the spectral change in 20 ms of speech relative to its variance: 0 for a constant, 1 for noise.

    It increases with the speech rate but not with the pitch. None if there is too little speech.

    Args:
        track: int16 [frames * 1000].
        speech: whether a frame is speech [frames].
    """
    from scipy.fft import dct

    hop, lag = AUDIO_RATE // _PACE_RATE, _PACE_RATE // 50
    voiced = np.repeat(speech, SAMPLES_PER_FRAME)[::hop]
    if voiced.sum() < _MIN_SPEECH_S * _PACE_RATE:
        return None
    padded = np.pad(track.astype(np.float32) / 32768, _PACE_WINDOW // 2)
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _PACE_WINDOW)[::hop][: len(voiced)]
    power = np.abs(np.fft.rfft(pieces * np.hanning(_PACE_WINDOW), axis=1)) ** 2
    shape = dct(np.log(power @ mel_filters(24, AUDIO_RATE, _PACE_WINDOW, 150.0, 6000.0) + 1e-6), axis=1, norm="ortho")[
        :, 1:6
    ]
    both = voiced[lag:] & voiced[:-lag]
    step = ((shape[lag:] - shape[:-lag])[both] ** 2).mean(axis=0)
    return float((step / (2 * shape[voiced].var(axis=0) + 1e-9)).mean())
