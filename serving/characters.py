"""Characters of a model folder: `characters/<id>/{reference.png, character.json}`, and their consent."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpm_model.consent import has_consent


class ConsentError(ValueError):
    """A character has no reference to the consent of the person shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CharacterCard:
    """A character that can be shown."""

    character_id: str
    """Folder name, as requested by `session.open`."""
    name: str
    """Shown to the user."""
    consent_ref: str
    """Where the consent of the person shown, or the proof that no real person is shown, is stored."""
    reference: Path
    """The character image."""


def list_characters(folder: Path) -> list[str]:
    """Return the ids of the characters of a model folder, sorted."""
    return sorted(path.parent.name for path in folder.glob("characters/*/character.json"))


def load_character(folder: Path, character_id: str, *, require_consent: bool = True) -> CharacterCard:
    """Load a character's card.

    Raises:
        ValueError: the character does not exist.
        ConsentError: character.json has no consent_ref that names a consent, and it is required.
    """
    known = list_characters(folder)
    if character_id not in known:
        raise ValueError(f"no character {character_id!r} in {folder.name}; choose one of {', '.join(known) or 'none'}")
    home = folder / "characters" / character_id
    raw = json.loads((home / "character.json").read_text(encoding="utf-8"))
    consent = str(raw.get("consent_ref") or "").strip()
    if require_consent and not has_consent(consent):
        raise ConsentError(
            f"character {character_id} has no consent_ref that names a consent: {consent!r}; "
            f"add it to characters/{character_id}/character.json"
        )
    return CharacterCard(
        character_id=character_id,
        name=str(raw.get("name") or character_id),
        consent_ref=consent,
        reference=home / "reference.png",
    )


def read_reference(card: CharacterCard, size_px: int) -> NDArray[np.uint8]:
    """Read the character image, cropped to its centre square, as uint8 [size_px, size_px, 3]."""
    from PIL import Image

    with Image.open(card.reference) as image:
        rgb = image.convert("RGB")
        side = min(rgb.size)
        left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
        square = rgb.crop((left, top, left + side, top + side)).resize((size_px, size_px), Image.Resampling.LANCZOS)
        return np.asarray(square, dtype=np.uint8).copy()
