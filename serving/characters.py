"""Characters of a model folder: `characters/<id>/{reference.png, character.json}`, and the rule of consent."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class ConsentError(ValueError):
    """A character without proof that the person shown has agreed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterCard:
    """Who may be shown."""

    character_id: str
    """Folder name; what `session.open` asks for."""
    name: str
    """Shown to the user."""
    consent_ref: str
    """Where the consent of the person shown, or the proof that nobody real is shown, is kept."""
    reference: Path
    """The character image."""


def list_characters(folder: Path) -> list[str]:
    """Ids of the characters of a model folder, sorted."""
    return sorted(path.parent.name for path in folder.glob("characters/*/character.json"))


def load_character(folder: Path, character_id: str, *, require_consent: bool = True) -> CharacterCard:
    """One character's card.

    Raises:
        ValueError: no such character.
        ConsentError: no consent_ref in character.json, and it is required.
    """
    known = list_characters(folder)
    if character_id not in known:
        raise ValueError(f"no character {character_id!r} in {folder.name}; choose one of {', '.join(known) or 'none'}")
    home = folder / "characters" / character_id
    raw = json.loads((home / "character.json").read_text(encoding="utf-8"))
    consent = str(raw.get("consent_ref") or "").strip()
    if require_consent and not consent:
        raise ConsentError(
            f"character {character_id} has no consent_ref; add it to characters/{character_id}/character.json"
        )
    return CharacterCard(
        character_id=character_id,
        name=str(raw.get("name") or character_id),
        consent_ref=consent,
        reference=home / "reference.png",
    )


def read_reference(card: CharacterCard, size_px: int) -> NDArray[np.uint8]:
    """The character image as uint8 [size, size, 3], centre-cropped to a square first."""
    from PIL import Image

    with Image.open(card.reference) as picture:
        rgb = picture.convert("RGB")
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side)).resize((size_px, size_px), Image.Resampling.LANCZOS)
        return np.asarray(square, dtype=np.uint8).copy()
