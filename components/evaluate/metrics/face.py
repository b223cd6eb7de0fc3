"""Face registration: aligns a clip's frames to each other on the upper face, and locates the mouth below it.

In-domain: the camera's framing is known, so a small Gauss-Newton search over shift, roll and scale is enough; it works
on soft generated frames as well as on ground truth.
"""

from dataclasses import dataclass, replace

import numpy as np

from components.evaluate.cases.cases import Array

ANCHOR = (0.5, 0.45)
"""Point (x, y as fractions of the side) about which the head rotates and scales."""
LIMITS = np.array([0.11, 0.11, 0.35, 0.25])
"""Largest shift (fractions of the side), roll (radians) and scale change."""
OFFSETS = [(dy, dx) for dy in range(-6, 7) for dx in range(-3, 4)]
"""Search offsets of the mouth around its usual position, in 128ths of the side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A rectangle of the frame, in fractions of its side, and the grid on which it is sampled."""

    top: float
    """Upper edge."""
    bottom: float
    """Lower edge."""
    left: float
    """Left edge."""
    right: float
    """Right edge."""
    rows: int
    """Grid rows."""
    columns: int
    """Grid columns."""

    def moved(self, dy: float, dx: float) -> "Region":
        """Return the region shifted by fractions of the side."""
        return replace(self, top=self.top + dy, bottom=self.bottom + dy, left=self.left + dx, right=self.right + dx)


STILL_FRAMES = 24
"""Frames sampled from a clip where only its mean frame matters."""
UPPER = Region(top=0.30, bottom=0.60, left=0.30, right=0.70, rows=20, columns=26)


def sample(image: Array, pose: Array, region: Region) -> Array:
    """Sample an image [H, W] or [H, W, C] on a region's grid under a pose (shift x, shift y, roll, scale change)."""
    import cv2

    size = image.shape[0]
    step_x, step_y = (region.right - region.left) / region.columns, (region.bottom - region.top) / region.rows
    x = region.left + step_x / 2 - ANCHOR[0]
    y = region.top + step_y / 2 - ANCHOR[1]
    roll, growth = pose[2], 1 + pose[3]
    affine = np.array(
        [
            [growth * step_x, -roll * step_y, ANCHOR[0] + pose[0] + growth * x - roll * y],
            [roll * step_x, growth * step_y, ANCHOR[1] + pose[1] + roll * x + growth * y],
        ]
    )
    affine *= size
    affine[:, 2] -= 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out: Array = cv2.warpAffine(
        image, affine, (region.columns, region.rows), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    return out


def register(video: Array, passes: int = 2, iterations: int = 6) -> Array:
    """Estimate the head's pose in every frame relative to the clip's mean frame.

    Args:
        video: uint8 [T, H, W, 3] of one person in one shot.
        passes: number of times the mean frame is recomputed.
        iterations: Gauss-Newton steps per pass.

    Returns:
        float [T, 4]: shift x, shift y (fractions of the side), roll (radians), scale change.
    """
    import cv2

    blur = 2.0 * video.shape[1] / 128
    lumas = [cv2.GaussianBlur(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), blur) for f in video]
    step_x, step_y = (UPPER.right - UPPER.left) / UPPER.columns, (UPPER.bottom - UPPER.top) / UPPER.rows
    x = UPPER.left + (np.arange(UPPER.columns)[None] + 0.5) * step_x - ANCHOR[0]
    y = UPPER.top + (np.arange(UPPER.rows)[:, None] + 0.5) * step_y - ANCHOR[1]
    poses = np.zeros((len(video), 4))
    for _ in range(passes):
        mean = np.mean([sample(luma, pose, UPPER) for luma, pose in zip(lumas, poses, strict=True)], axis=0)
        down, right = np.gradient(mean)
        down, right = down / step_y, right / step_x
        slopes = np.stack([right, down, down * x - right * y, right * x + down * y], axis=-1).reshape(-1, 4)
        # Brightness and contrast are fitted too, so that their changes are not mistaken for motion.
        design = np.concatenate([slopes, np.ones((len(slopes), 1)), mean.reshape(-1, 1)], axis=1)
        ridge = np.diag([*(1e-3 * (slopes**2).sum(0) + 1e-6), 1e-6, 1e-6])
        solve = np.linalg.solve(design.T @ design + ridge, design.T)
        for _ in range(iterations):
            seen = np.stack([sample(luma, pose, UPPER) for luma, pose in zip(lumas, poses, strict=True)])
            change = (mean.reshape(1, -1) - seen.reshape(len(video), -1)) @ solve.T
            poses = np.clip(poses + change[:, :4], -LIMITS, LIMITS)
    return poses


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A video prepared for the probes."""

    colours: Array
    """float [T, H, W, 2]: brightness and redness, slightly blurred; lips and tongue are red, an open mouth dark."""
    poses: Array
    """float [T, 4] from `register`."""


def prepare(video: Array) -> Clip:
    """Prepare a uint8 video [T, H, W, 3] of one person in one shot for the probes."""
    import cv2

    blur = video.shape[1] / 128
    out = np.empty((*video.shape[:3], 2), np.float32)
    for image, frame in zip(out, video, strict=True):
        values = frame.astype(np.float32)
        pair = np.stack([values.mean(-1), values[..., 0] - values[..., 1]], axis=-1)
        image[:] = cv2.GaussianBlur(pair, (0, 0), blur)
    return Clip(colours=out, poses=register(video))


def standardise(patch: Array) -> Array:
    """Remove mean and contrast from a patch [rows, columns, 2]."""
    out: Array = (patch - patch.mean((0, 1))) / (patch.std((0, 1)) + 1)
    return out


def locate(patches: Array, template: Array) -> int:
    """Return the index of the patch, of [P, rows, columns, 2], that correlates best with the template."""
    return int(np.argmax([float((standardise(p) * template).mean()) for p in patches]))


def candidate_patches(clip: Clip, region: Region) -> Array:
    """Sample the clip's mean registered frame at each of OFFSETS around a region, float [P, rows, columns, 2]."""
    size = clip.colours.shape[1]
    whole = Region(top=0, bottom=1, left=0, right=1, rows=size, columns=size)
    some = np.linspace(0, len(clip.poses) - 1, min(len(clip.poses), STILL_FRAMES)).round().astype(int)
    mean = np.mean([sample(clip.colours[i], clip.poses[i], whole) for i in some], axis=0)
    rest = np.zeros(4)
    return np.stack([sample(mean, rest, region.moved(dy / 128, dx / 128)) for dy, dx in OFFSETS])


def fit_template(candidates: list[Array], rounds: int = 4) -> Array:
    """Average the region over people, alternating between choosing each clip's best patch and averaging."""
    chosen = [OFFSETS.index((0, 0))] * len(candidates)
    for _ in range(rounds):
        template: Array = np.mean([standardise(p[i]) for p, i in zip(candidates, chosen, strict=True)], axis=0)
        chosen = [locate(p, template) for p in candidates]
    return template
