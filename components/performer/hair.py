"""Hair as closed shells over the skull: one grid of angle x distance from the crown, shaped by the style."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from components.performer.head import grid_triangles
from components.performer.identity import Identity
from components.performer.mesh import Mesh, linear, make_mesh

FloatArray = NDArray[np.float64]

COLUMNS: Final = 80
CAP_ROWS: Final = 18
DROP_ROWS: Final = 9
CENTRE: Final = np.array([0.0, 0.10, -0.06])
"""Origin of the angles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Style:
    thickness: float
    """Distance from the skin on top, head heights."""
    drop: float = 0.0
    """Length of hair below the ears."""
    opening: float = 60.0
    """Half angle (degrees) around the face without hanging hair."""
    fringe: bool = False
    """Hair over the forehead."""
    curls: float = 0.0
    """Height of curls."""
    quiff: float = 0.0
    """Extra height over the forehead."""
    part: float = 0.0
    """Depth of the parting."""
    curl_in: float = 0.0
    """Inward bend of the tips."""
    swept: bool = False
    """Pulled back into a bun."""
    sweep: float = 0.0
    """Degrees by which hair is lower on one side of the forehead."""


_STYLES: Final[dict[str, _Style]] = {
    "buzz": _Style(thickness=0.012),
    "short": _Style(thickness=0.035),
    "side_part": _Style(thickness=0.05, part=0.03, sweep=10),
    "quiff": _Style(thickness=0.035, quiff=0.07),
    "fringe": _Style(thickness=0.05, fringe=True),
    "bob": _Style(thickness=0.06, drop=0.3, part=0.025, curl_in=0.16, sweep=8),
    "bob_fringe": _Style(thickness=0.06, drop=0.27, fringe=True, curl_in=0.2),
    "long": _Style(thickness=0.055, drop=0.75, part=0.03, opening=62, sweep=6),
    "long_fringe": _Style(thickness=0.055, drop=0.7, fringe=True, opening=64),
    "bun": _Style(thickness=0.022, swept=True),
    "curly": _Style(thickness=0.09, curls=0.022),
    "curly_long": _Style(thickness=0.085, curls=0.026, drop=0.5, opening=66),
}


def make_hair(identity: Identity, skull: FloatArray) -> list[Mesh]:
    """Build the hair of a person.

    Args:
        identity: the person.
        skull: [N, 3] points of the bare head without ears.
    """
    if identity.hair_style == "bald":
        return []
    style = _STYLES[identity.hair_style]
    angle = np.linspace(-np.pi, np.pi, COLUMNS, endpoint=False)
    rng = np.random.default_rng([identity.seed, 2])
    locks = _locks(rng, angle)
    ends = np.radians(_ends(identity, style, np.degrees(angle)) + 1.6 * locks)
    # Hanging hair leaves the skull at ear level and falls straight down.
    leave = np.minimum(ends, np.radians(98 if style.drop else 180))
    rows = np.linspace(0, 1, CAP_ROWS)[:, None]
    polar = leave[None] * rows
    azimuth = np.broadcast_to(angle, polar.shape)
    directions = np.stack([np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)], -1)
    radius = _skull_radius(skull, directions)
    thickness = _thickness(identity, style, polar, azimuth, rows, locks, rng)
    points = CENTRE + directions * (radius + thickness)[..., None]
    tone = 1 + 0.16 * locks[None] * np.minimum(1, 2 * rows) * np.ones_like(polar)
    if style.drop:
        points, tone = _add_hanging_rows(style, points, angle, locks, tone, rng)
    total = len(points)
    below = np.clip((-0.15 - points[..., 1]) / 0.5, 0, 1)
    shell = make_mesh(
        points,
        grid_triangles(total, COLUMNS, closed=True),
        _colours(identity, style, tone),
        gloss=0.1,
        occlusion=np.clip(0.85 + 0.15 * np.minimum(1, points[..., 1] * 3), 0.6, 1),
        follow=1 - 0.55 * below,
    )
    return [shell, _bun(identity, skull)] if style.swept else [shell]


def _colours(identity: Identity, style: _Style, tone: FloatArray) -> FloatArray:
    """Return colours per vertex: locks vary in brightness, and skin is visible towards the hairline."""
    colours = linear(identity.hair) * np.clip(tone, 0.6, 1.4)[..., None]
    if not style.fringe and not style.drop:
        skin = linear(identity.skin)
        for row, fraction in ((CAP_ROWS - 1, 0.5), (CAP_ROWS - 2, 0.15)):
            colours[row] += fraction * (skin - colours[row])
    return np.asarray(colours)


def _ends(identity: Identity, style: _Style, azimuth: FloatArray) -> FloatArray:
    """Return the angle from the crown at which hair ends, by azimuth; both in degrees."""
    degrees = np.abs(azimuth)
    front = 62.0 - 5.0 * identity.hairline
    temple = front + 6 if not style.swept else front + 8
    knots = [(0, front), (30, front + 1), (52, temple), (66, 84), (74, 101), (82, 103), (90, 87), (112, 86), (128, 110),
             (150, 123), (180, 126)]  # fmt: skip
    if style.swept or identity.hair_style in ("buzz", "bald"):
        knots[4], knots[5] = (74, 96), (82, 94)
    ends = np.interp(degrees, [knot[0] for knot in knots], [knot[1] for knot in knots])
    if style.sweep:
        # Hair combed to one side is lower over the forehead on that side.
        side = -np.sign(identity.parting or 1.0)
        ends = ends + style.sweep * np.exp(-(((azimuth - 30 * side) / 26) ** 2))
    if style.fringe:
        ends = np.maximum(ends, np.interp(degrees, [0, 40, 58, 66], [84, 86, 92, 0]))
    if style.drop:
        hanging = np.interp(degrees, [style.opening - 9, style.opening + 5], [0, 1])
        ends = ends + (np.maximum(ends, 98) - ends) * hanging
    return np.asarray(ends)


def _skull_radius(skull: FloatArray, directions: FloatArray) -> FloatArray:
    """Return the smoothed distance from the centre to the skull along each direction."""
    offset = skull - CENTRE
    length = np.linalg.norm(offset, axis=1)
    cosine = directions.reshape(-1, 3) @ (offset / length[:, None]).T
    weight = np.exp(160 * (cosine - cosine.max(1, keepdims=True)))
    radius: FloatArray = (weight @ length / weight.sum(1)).reshape(directions.shape[:-1])
    return radius


def _locks(rng: np.random.Generator, angle: FloatArray) -> FloatArray:
    """Return a periodic wave of unit amplitude along the azimuth."""
    waves = sum(np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in (5, 8, 11, 15))
    return np.asarray(waves / 2.0)


def _thickness(
    identity: Identity,
    style: _Style,
    polar: FloatArray,
    azimuth: FloatArray,
    rows: FloatArray,
    locks: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    degrees, down = np.degrees(azimuth), np.degrees(polar)
    thick = style.thickness * identity.hair_volume * np.ones_like(polar)
    thick *= 1 + 0.12 * locks * np.minimum(1, 1.5 * rows)
    if style.quiff:
        forward = np.exp(-((degrees / 48) ** 2)) * np.exp(-(((down - 46) / 18) ** 2))
        thick += style.quiff * identity.hair_volume * forward
    if style.part:
        line = 32 * identity.parting + np.sign(identity.parting) * 8
        thick -= style.part * np.exp(-(((degrees - line) / 9) ** 2)) * np.exp(-(((down - 35) / 28) ** 2))
    if style.curls:
        thick += style.curls * _bumps(rng, polar, azimuth)
    # Hair is flatter towards the hairline; fringes and hanging hair are loose.
    free = 0.75 if style.fringe else 0.0
    front = np.exp(-((degrees / 50) ** 2))
    closing = np.clip((1 - rows) / 0.22, 0, 1)
    closing = np.sqrt(closing * (2 - closing))
    loose = np.ones_like(polar) * free * front
    if style.drop:
        loose = np.maximum(loose, np.clip((np.abs(degrees) - style.opening + 6) / 8, 0, 1))
        over_ears = np.exp(-(((np.abs(degrees) - 96) / 22) ** 2)) * np.exp(-(((down - 100) / 22) ** 2))
        thick += 0.035 * over_ears
    return np.asarray(np.maximum(0.006, thick * (loose + (1 - loose) * closing)))


def _bumps(rng: np.random.Generator, polar: FloatArray, azimuth: FloatArray) -> FloatArray:
    directions = np.stack([np.sin(polar) * np.sin(azimuth), np.cos(polar), np.sin(polar) * np.cos(azimuth)], -1)
    waves = np.zeros_like(polar)
    for _ in range(8):
        axis = rng.normal(0, 1, 3)
        waves += np.sin(directions @ (axis / np.linalg.norm(axis)) * 15 + rng.uniform(0, 2 * np.pi))
    return np.asarray(waves / 2.2)


def _add_hanging_rows(
    style: _Style,
    points: FloatArray,
    angle: FloatArray,
    locks: FloatArray,
    tone: FloatArray,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """Append the rows that hang from the last row of the cap."""
    degrees = np.degrees(np.abs(angle))
    reach = np.interp(degrees, [style.opening - 5, style.opening + 9], [0, 1])
    fraction = np.linspace(0, 1, DROP_ROWS + 1)[1:, None]
    start = points[-1]
    fall = np.repeat(start[None], DROP_ROWS, 0)
    length = style.drop * reach * (1 + (0.1 if style.curls else 0.04) * locks)
    fall[..., 1] -= length * fraction
    pull = 1 - style.curl_in * fraction**2 * reach + 0.05 * np.sin(np.pi * fraction) * reach
    if style.curls:
        pull = pull + 1.6 * style.curls * np.sin(9 * fraction + 3 * locks + rng.uniform(0, 6)) * reach
    fall[..., 0] *= pull
    fall[..., 2] = CENTRE[2] + (fall[..., 2] - CENTRE[2]) * pull
    darker = tone[-1] * (1 - 0.12 * fraction * reach)
    return np.concatenate([points, fall]), np.concatenate([tone, darker])


def _bun(identity: Identity, skull: FloatArray) -> Mesh:
    """Build a bun on the back of the head."""
    top = float(skull[:, 1].max())
    size = 0.13 * (0.8 + 0.3 * identity.hair_volume)
    polar, azimuth = np.meshgrid(
        np.linspace(0, np.pi, 10), np.linspace(0, 2 * np.pi, 20, endpoint=False), indexing="ij"
    )
    ball = np.stack([np.sin(polar) * np.sin(azimuth), 0.8 * np.cos(polar), np.sin(polar) * np.cos(azimuth)], -1)
    swirl = 1 + 0.05 * np.sin(6 * azimuth + 5 * polar)
    points = np.array([0.0, top + 0.35 * size, -0.16]) + ball * (size * swirl)[..., None]
    return make_mesh(
        points,
        grid_triangles(10, 20, closed=True),
        linear(identity.hair) * (0.9 + 0.1 * np.sin(6 * azimuth + 5 * polar))[..., None],
        gloss=0.1,
        occlusion=np.clip(0.75 + 0.3 * np.cos(polar), 0.5, 1),
    )
