"""In-domain probes: linear regressors of mouth opening, smile, brow and head pitch from pixels, fitted in closed form.

A general face tracker is unreliable on soft generated frames, so the probes are fitted on ground-truth renders of other
people, sharp and through the autoencoder, and are checked on the ground truth of the scored people before use. All
features are relative to the clip's own mean frame, so that a probe generalises to unseen faces.
"""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import Array
from components.evaluate.metrics.anchored import pearson
from components.evaluate.metrics.face import OFFSETS, Clip, Region, candidate_patches, fit_template, locate, sample

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridge penalties tried, in units of the mean feature power."""
FOLDS = 4
"""Folds of the cross-validation over people that chooses the penalty."""
MIN_PROBE_CORRELATION = 0.9
"""Correlation on held-out ground truth below which a probe, and every metric based on it, is called weak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The pixels of a clip that a probe reads, and their preprocessing."""

    region: Region
    """Rectangle of the frame."""
    registered: bool
    """Whether the head's motion is removed first; False for probes of that motion."""
    located: bool
    """Whether the region is first located on this person."""
    relative_to_brightness: bool
    """Whether changes are divided by the region's brightness, which normalises skin tones."""


VIEWS = {
    "jaw_open": View(
        region=Region(top=0.505, bottom=0.815, left=0.307, right=0.697, rows=16, columns=20),
        registered=True,
        located=True,
        relative_to_brightness=False,
    ),
    "smile": View(
        region=Region(top=0.505, bottom=0.815, left=0.307, right=0.697, rows=16, columns=20),
        registered=True,
        located=False,
        relative_to_brightness=True,
    ),
    "brow": View(
        region=Region(top=0.32, bottom=0.54, left=0.27, right=0.73, rows=14, columns=22),
        registered=True,
        located=False,
        relative_to_brightness=True,
    ),
    "pitch": View(
        region=Region(top=0.16, bottom=0.8, left=0.22, right=0.78, rows=24, columns=20),
        registered=False,
        located=False,
        relative_to_brightness=True,
    ),
}
"""View of each signal's probe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Linear regressor of one signal."""

    view: View
    """Pixels it reads."""
    template: Array | None
    """float [rows, columns, 2] with which the region is located; None = the region is fixed."""
    weights: Array
    """float [rows * columns * 2]."""

    def read(self, clip: Clip) -> Array:
        """Return the signal, float [T], relative to the clip's mean."""
        signal: Array = features(clip, self.view, self.template) @ self.weights
        return signal


def features(clip: Clip, view: View, template: Array | None) -> Array:
    """Compute person-relative features of every frame.

    Args:
        clip: one person in one shot.
        view: pixels to read.
        template: with which the region is located; None = the region is fixed.

    Returns:
        float [T, rows * columns * 2]: brightness and redness of the region minus their means over the clip.
    """
    region = view.region
    if template is not None:
        dy, dx = OFFSETS[locate(candidate_patches(clip, region), template)]
        region = region.moved(dy / 128, dx / 128)
    poses = clip.poses if view.registered else np.zeros_like(clip.poses)
    seen = np.stack([sample(image, pose, region) for image, pose in zip(clip.colours, poses, strict=True)])
    mean = seen.mean(0)
    unit = 0.3 * float(mean[..., 0].mean()) + 5 if view.relative_to_brightness else 30.0
    flat: Array = ((seen - mean) / unit).reshape(len(seen), -1)
    return flat


def fit_probe(people: list[list[Clip]], targets: list[Array], view: View) -> Probe:
    """Fit a probe in closed form; cross-validation over people chooses its penalty.

    Args:
        people: for each person the same T frames in one or more renditions.
        targets: the signal of each person, float [T].
        view: pixels to read.
    """
    template = fit_template([candidate_patches(clips[0], view.region) for clips in people]) if view.located else None
    inputs = [np.concatenate([features(clip, view, template) for clip in clips]) for clips in people]
    signals = [np.tile(t - t.mean(), len(clips)) for t, clips in zip(targets, people, strict=True)]
    folds = np.arange(len(inputs)) % FOLDS
    scores = np.zeros(len(STRENGTHS))
    for fold in range(FOLDS):
        training, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        solutions = _ridge(
            np.concatenate([inputs[i] for i in training]), np.concatenate([signals[i] for i in training])
        )
        inputs_out = np.concatenate([inputs[i] for i in held_out])
        signals_out = np.concatenate([signals[i] for i in held_out])
        scores += [pearson(inputs_out @ weights, signals_out) for weights in solutions]
    every = _ridge(np.concatenate(inputs), np.concatenate(signals))
    return Probe(view=view, template=template, weights=every[int(np.argmax(scores))])


def _ridge(inputs: Array, signal: Array) -> list[Array]:
    """Return ridge weights for every penalty in STRENGTHS."""
    gram, projected = inputs.T @ inputs, inputs.T @ signal
    power = float(np.trace(gram)) / len(gram)
    eye = np.eye(len(gram), dtype=gram.dtype)
    return [np.linalg.solve(gram + (strength * power + 1e-6) * eye, projected) for strength in STRENGTHS]
