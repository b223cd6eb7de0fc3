"""Appearance of a synthetic person: head shape, colours, hair, clothes, room and light, drawn from a seed."""

import math
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, Final

import numpy as np

SHAPE_NAMES: Final[tuple[str, ...]] = (
    "face_width", "head_depth", "head_length", "jaw_width", "jaw_angle", "chin_length", "chin_forward",
    "cheek_fullness", "cheekbones", "nose_length", "nose_width", "nose_bridge", "nose_tip", "eye_size", "eye_spacing",
    "eye_height", "eye_tilt", "brow_ridge", "forehead_slope", "forehead_height", "upper_lip", "lower_lip",
    "mouth_width", "mouth_height", "ear_size", "neck_width",
)  # fmt: skip
"""Traits of the head's shape; each is a number of standard deviations from the mean head."""

HAIR_STYLES: Final = (
    "bald", "buzz", "short", "side_part", "quiff", "fringe", "bob", "bob_fringe", "long", "long_fringe", "bun",
    "curly", "curly_long",
)  # fmt: skip
BEARDS: Final = ("none", "stubble", "moustache", "goatee", "full")
CLOTHES: Final = ("t_shirt", "v_neck", "shirt", "jumper")
GLASSES: Final = ("none", "round", "square")

Colour = tuple[float, float, float]

_SKINS: Final[tuple[Colour, ...]] = (
    (0.94, 0.80, 0.73), (0.91, 0.73, 0.63), (0.87, 0.67, 0.55), (0.80, 0.60, 0.46), (0.72, 0.52, 0.38),
    (0.62, 0.43, 0.31), (0.50, 0.34, 0.24), (0.41, 0.27, 0.19),
)  # fmt: skip
_HAIRS: Final[tuple[Colour, ...]] = (
    (0.10, 0.08, 0.08), (0.20, 0.13, 0.09), (0.33, 0.21, 0.13), (0.47, 0.31, 0.18), (0.78, 0.62, 0.38),
    (0.58, 0.27, 0.12), (0.62, 0.60, 0.58), (0.86, 0.84, 0.81),
)  # fmt: skip
_IRISES: Final[tuple[Colour, ...]] = (
    (0.25, 0.14, 0.07), (0.36, 0.23, 0.12), (0.38, 0.34, 0.20), (0.33, 0.38, 0.28),
    (0.32, 0.42, 0.52), (0.42, 0.47, 0.50),
)  # fmt: skip
_FABRICS: Final[tuple[Colour, ...]] = (
    (0.16, 0.20, 0.33), (0.52, 0.16, 0.18), (0.20, 0.37, 0.31), (0.85, 0.84, 0.80), (0.15, 0.15, 0.17),
    (0.36, 0.52, 0.68), (0.75, 0.58, 0.26), (0.45, 0.30, 0.45), (0.62, 0.64, 0.66), (0.75, 0.45, 0.38),
)  # fmt: skip
_WALLS: Final[tuple[Colour, ...]] = (
    (0.70, 0.74, 0.78), (0.62, 0.70, 0.66), (0.78, 0.72, 0.64), (0.42, 0.50, 0.60), (0.66, 0.58, 0.60),
    (0.52, 0.56, 0.50), (0.80, 0.80, 0.78), (0.34, 0.36, 0.42), (0.58, 0.66, 0.76), (0.72, 0.62, 0.52),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Appearance of one person; colours are sRGB in 0..1."""

    seed: int
    """Seed of the person, also of fine detail such as locks of hair."""
    shape: tuple[float, ...]
    """Standard deviations in SHAPE_NAMES order, each within +-2.5."""
    skin: Colour
    """Skin tone."""
    blush: float
    """How much redder cheeks, nose and ears are, 0..1."""
    lips: Colour
    """Colour of the lips."""
    iris: Colour
    """Colour of the irises."""
    hair_style: str
    """One of HAIR_STYLES."""
    hair: Colour
    """Colour of the hair."""
    hair_volume: float
    """Thickness of the hair, 0.6..1.5 times the usual."""
    hairline: float
    """-1 low .. 1 high."""
    parting: float
    """Where hair is parted, -1 left .. 1 right."""
    brows: Colour
    """Colour of the brows."""
    brow_thickness: float
    """0.5 thin .. 1.6 bushy."""
    brow_arch: float
    """-1 flat .. 1 arched."""
    brow_height: float
    """-1 low .. 1 high."""
    beard: str
    """One of BEARDS."""
    glasses: str
    """One of GLASSES."""
    glasses_colour: Colour
    """Colour of the frame."""
    clothes: str
    """One of CLOTHES."""
    fabric: Colour
    """Colour of the clothes."""
    wall: Colour
    """Colour of the room behind."""
    wall_tilt: float
    """Direction of the wall's gradient in radians."""
    light_yaw: float
    """Key light from the side, radians; positive from the image's right."""
    light_pitch: float
    """Key light from above, radians."""
    light_warmth: float
    """-1 cool .. 1 warm."""

    def __post_init__(self) -> None:
        if len(self.shape) != len(SHAPE_NAMES) or not all(abs(value) <= 2.5 for value in self.shape):
            raise ValueError(f"shape needs {len(SHAPE_NAMES)} values within +-2.5, got {self.shape}")
        for name, allowed in (
            ("hair_style", HAIR_STYLES), ("beard", BEARDS), ("clothes", CLOTHES), ("glasses", GLASSES),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        for name in ("skin", "lips", "iris", "hair", "brows", "glasses_colour", "fabric", "wall"):
            colour = getattr(self, name)
            if len(colour) != 3 or not all(0.0 <= channel <= 1.0 for channel in colour):
                raise ValueError(f"{name} is {colour}: give three numbers in 0..1")
        for name, low, high in (
            ("blush", 0.0, 1.0), ("hair_volume", 0.6, 1.5), ("hairline", -1.0, 1.0), ("parting", -1.0, 1.0),
            ("brow_thickness", 0.5, 1.6), ("brow_arch", -1.0, 1.0), ("brow_height", -1.0, 1.0),
            ("wall_tilt", -math.pi, math.pi), ("light_yaw", -1.2, 1.2), ("light_pitch", -0.2, 1.2),
            ("light_warmth", -1.0, 1.0),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}: choose a value in {low}..{high}")

    @classmethod
    def from_seed(cls, seed: int) -> "Identity":
        """Draw a person from `seed` (>= 0); deterministic."""
        if seed < 0:
            raise ValueError(f"seed is {seed}: give a number >= 0")
        rng = np.random.default_rng([0x4C504D, seed])
        vary = partial(_vary, rng)
        feminine = bool(rng.random() < 0.5)
        shape = np.clip(rng.normal(0, 1, len(SHAPE_NAMES)) + _mean_shape_of_group(feminine), -2.2, 2.2)
        tone = float(rng.uniform(0, len(_SKINS) - 1))
        skin = vary(_between(_SKINS, tone), 0.03)
        # Fair and red hair occurs with fair skin; grey hair with any.
        hair_weights = np.array([3, 3, 3, 2, 2, 1.2, 1.0, 0.5]) * np.where(tone > 4, [3, 2, 1, 0.1, 0, 0, 1, 0.5], 1.0)
        hair = vary(_HAIRS[int(rng.choice(len(_HAIRS), p=hair_weights / hair_weights.sum()))], 0.08)
        iris_weights = np.array([3, 2, 1, 1, 1.4, 0.8]) * np.where(tone > 3.5, [3, 1, 0.1, 0, 0, 0], 1.0)
        iris = vary(_IRISES[int(rng.choice(len(_IRISES), p=iris_weights / iris_weights.sum()))], 0.08)
        styles = _FEMININE_STYLES if feminine else _MASCULINE_STYLES
        beard = "none" if feminine or rng.random() < 0.5 else str(rng.choice(BEARDS[1:]))
        rosy = 0.2 + 0.6 * float(rng.random()) if feminine else 0.15 * float(rng.random())
        lips = (
            min(1.0, skin[0] * (0.80 - 0.02 * rosy) + 0.04 * rosy),
            skin[1] * (0.60 - 0.14 * rosy),
            skin[2] * (0.62 - 0.12 * rosy),
        )
        dark = 0.55 + 0.35 * float(rng.random())
        return cls(
            seed=seed,
            shape=tuple(float(value) for value in shape),
            skin=skin,
            blush=float(rng.uniform(0.1, 0.8)),
            lips=lips,
            iris=iris,
            hair_style=str(rng.choice(styles)),
            hair=hair,
            hair_volume=float(rng.uniform(0.75, 1.35)),
            hairline=float(rng.uniform(-0.9, 0.9)) if feminine else float(rng.uniform(-0.6, 1.0)),
            parting=float(rng.uniform(-1, 1)),
            brows=(hair[0] * dark, hair[1] * dark, hair[2] * dark),
            brow_thickness=float(rng.uniform(0.55, 1.05) if feminine else rng.uniform(0.8, 1.6)),
            brow_arch=float(rng.uniform(-0.4, 1) if feminine else rng.uniform(-1, 0.5)),
            brow_height=float(rng.uniform(-0.5, 1) if feminine else rng.uniform(-1, 0.4)),
            beard=beard,
            glasses=str(rng.choice(GLASSES, p=[0.76, 0.12, 0.12])),
            glasses_colour=vary(((0.1, 0.1, 0.11), (0.35, 0.2, 0.12), (0.45, 0.45, 0.48))[int(rng.integers(3))], 0.1),
            clothes=str(rng.choice(CLOTHES)),
            fabric=vary(_FABRICS[int(rng.integers(len(_FABRICS)))], 0.08),
            wall=vary(_WALLS[int(rng.integers(len(_WALLS)))], 0.06),
            wall_tilt=float(rng.uniform(-math.pi, math.pi)),
            light_yaw=float(rng.uniform(-0.8, 0.8)),
            light_pitch=float(rng.uniform(0.25, 0.75)),
            light_warmth=float(rng.uniform(-0.7, 1)),
        )

    def trait(self, name: str) -> float:
        """Return one shape trait in standard deviations."""
        return self.shape[SHAPE_NAMES.index(name)]

    def distance(self, other: "Identity") -> float:
        """Return how different two people look: distance of shape and colours, plus one per differing style."""
        colours = [
            (a - b) * 4
            for name in ("skin", "hair", "lips", "iris", "fabric", "wall")
            for a, b in zip(getattr(self, name), getattr(other, name), strict=True)
        ]
        shapes = [a - b for a, b in zip(self.shape, other.shape, strict=True)]
        styles = sum(
            getattr(self, name) != getattr(other, name) for name in ("hair_style", "beard", "glasses", "clothes")
        )
        return float(math.hypot(*colours, *shapes) + styles)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> "Identity":
        """Build a person from the result of `to_mapping`.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        names = {field.name for field in fields(cls)}
        if set(mapping) != names:
            raise ValueError(f"identity fields differ: {sorted(set(mapping) ^ names)}; write them with to_mapping()")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in mapping.items()}
        return cls(**values)


_FEMININE_STYLES: Final = (
    "bob", "bob", "bob_fringe", "long", "long", "long_fringe", "bun", "bun", "curly_long", "curly", "short",
    "side_part",
)  # fmt: skip
_MASCULINE_STYLES: Final = (
    "bald", "buzz", "buzz", "short", "short", "side_part", "side_part", "quiff", "quiff", "fringe", "curly", "long",
)  # fmt: skip


def _vary(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """Vary a colour in brightness, and slightly in hue."""
    shade = float(rng.normal(0, amount))
    shifted = [min(1.0, max(0.0, c * (1 + shade) + float(rng.normal(0, amount / 12)))) for c in colour]
    return (shifted[0], shifted[1], shifted[2])


def _between(colours: tuple[Colour, ...], position: float) -> Colour:
    """Interpolate along a list of colours."""
    index = min(int(position), len(colours) - 2)
    mixed = [a + (b - a) * (position - index) for a, b in zip(colours[index], colours[index + 1], strict=True)]
    return (mixed[0], mixed[1], mixed[2])


def _mean_shape_of_group(feminine: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the mean shape of a group; variation within a group is larger than the difference between groups."""
    amounts = {
        "jaw_width": -0.7, "chin_length": -0.4, "brow_ridge": -0.8, "nose_width": -0.4, "nose_length": -0.3,
        "eye_size": 0.6, "upper_lip": 0.4, "lower_lip": 0.4, "neck_width": -0.9, "face_width": -0.2,
    }  # fmt: skip
    lean = np.array([amounts.get(name, 0.0) for name in SHAPE_NAMES])
    return lean if feminine else -lean * 0.7
