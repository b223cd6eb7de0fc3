"""In-domain probes: closed-form readers of mouth opening, smile, brow and head pitch from pixels.

A general face tracker misreads soft generated frames, so the instruments are fitted on true renders of other people,
sharp and through the autoencoder, and are checked on held-out true renders before anything is measured with them.
Everything is relative to the clip's own mean picture, so that a probe works on faces that it has never seen.
"""

from dataclasses import dataclass

import numpy as np

from components.evaluate.cases.cases import Array
from components.evaluate.metrics.anchored import pearson
from components.evaluate.metrics.face import OFFSETS, Clip, Region, fit_template, locate, places_of, sample

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Ridge penalties tried, in units of the mean feature power."""
FOLDS = 4
"""Groups of people left out in turn to choose the penalty."""
GOOD_PROBE = 0.9
"""Correlation on held-out true renders under which a probe, and what is measured with it, is called weak."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """How a probe looks at a clip."""

    region: Region
    """Where."""
    registered: bool
    """Take the head's motion out first; a probe of the head's own motion must not."""
    located: bool
    """Find the region on this person first."""
    per_light: bool
    """Count changes relative to the region's brightness, which makes skin tones alike."""


VIEWS = {
    "jaw_open": View(
        region=Region(top=0.505, bottom=0.815, left=0.307, right=0.697, rows=16, columns=20),
        registered=True,
        located=True,
        per_light=False,
    ),
    "smile": View(
        region=Region(top=0.505, bottom=0.815, left=0.307, right=0.697, rows=16, columns=20),
        registered=True,
        located=False,
        per_light=True,
    ),
    "brow": View(
        region=Region(top=0.32, bottom=0.54, left=0.27, right=0.73, rows=14, columns=22),
        registered=True,
        located=False,
        per_light=True,
    ),
    "pitch": View(
        region=Region(top=0.16, bottom=0.8, left=0.22, right=0.78, rows=24, columns=20),
        registered=False,
        located=False,
        per_light=True,
    ),
}
"""How each signal is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A linear reader of one signal."""

    view: View
    """How it looks."""
    template: Array | None
    """float [rows, columns, 2]: by which the region is located."""
    weights: Array
    """float [rows * columns * 2]."""

    def read(self, clip: Clip) -> Array:
        """The signal, float [T], relative to the clip's mean."""
        signal: Array = features(clip, self.view, self.template) @ self.weights
        return signal


def features(clip: Clip, view: View, template: Array | None) -> Array:
    """Person-relative features of every frame.

    Args:
        clip: of one person.
        view: how to look.
        template: by which the region is located.

    Returns:
        float [T, rows * columns * 2]: brightness and redness of the region minus their means over the clip.
    """
    region = view.region
    if template is not None:
        dy, dx = OFFSETS[locate(places_of(clip, region), template)]
        region = region.moved(dy / 128, dx / 128)
    poses = clip.poses if view.registered else np.zeros_like(clip.poses)
    seen = np.stack([sample(picture, pose, region) for picture, pose in zip(clip.colours, poses, strict=True)])
    mean = seen.mean(0)
    unit = 0.3 * float(mean[..., 0].mean()) + 5 if view.per_light else 30.0
    flat: Array = ((seen - mean) / unit).reshape(len(seen), -1)
    return flat


def fit_probe(people: list[list[Clip]], targets: list[Array], view: View) -> Probe:
    """Fit a reader in closed form; its penalty is chosen by leaving people out.

    Args:
        people: for each person the same T frames in one or more renditions.
        targets: the signal of each person, float [T].
        view: how to look.
    """
    template = fit_template([places_of(clips[0], view.region) for clips in people]) if view.located else None
    inputs = [np.concatenate([features(clip, view, template) for clip in clips]) for clips in people]
    signals = [np.tile(t - t.mean(), len(clips)) for t, clips in zip(targets, people, strict=True)]
    folds = np.arange(len(inputs)) % FOLDS
    scores = np.zeros(len(STRENGTHS))
    for fold in range(FOLDS):
        kept, left = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        solutions = _ridge(np.concatenate([inputs[i] for i in kept]), np.concatenate([signals[i] for i in kept]))
        held, truth = np.concatenate([inputs[i] for i in left]), np.concatenate([signals[i] for i in left])
        scores += [pearson(held @ weights, truth) for weights in solutions]
    every = _ridge(np.concatenate(inputs), np.concatenate(signals))
    return Probe(view=view, template=template, weights=every[int(np.argmax(scores))])


def _ridge(inputs: Array, signal: Array) -> list[Array]:
    """Ridge weights for every penalty in STRENGTHS."""
    gram, projected = inputs.T @ inputs, inputs.T @ signal
    power = float(np.trace(gram)) / len(gram)
    eye = np.eye(len(gram), dtype=gram.dtype)
    return [np.linalg.solve(gram + (strength * power + 1e-6) * eye, projected) for strength in STRENGTHS]
