"""Writes the default characters of a served model: people of its dataset with consent, at rest, facing the camera.

Input: a dataset folder. Output: `characters/<id>/{reference.png, character.json}` in a model folder, as
`serving.characters` reads them. Rendered people are preferred: the consent_ref of real people, which is copied, covers
training, but a live character that looks like a real person should be chosen by hand.
"""

import logging
from pathlib import Path
from typing import Any

from components.dataset.manifest import read_rows
from components.dataset.states import SPEAK
from lpm_model.consent import has_consent
from lpm_model.files import write_json

log = logging.getLogger(__name__)

COUNT = 4
"""Default maximum number of characters."""


def write_characters(dataset: Path, model: Path, count: int = COUNT) -> list[str]:
    """Write characters to a model folder.

    Args:
        dataset: folder that curate wrote.
        model: model folder; its autoencoder reconstructs the images, as it does in a live session.
        count: maximum number.

    Returns:
        Their ids; fewer than `count` if the dataset shows fewer people with a consent_ref.
    """
    from PIL import Image

    from lpm_model.autoencoder.load import load_autoencoder
    from lpm_model.character import to_frames
    from lpm_model.training.engine.shard_reader import read_clips

    people = _people(dataset)[:count]
    if not people:
        log.warning(
            "%s has no clip of a person with a consent_ref: add characters by hand, see serving/README.md", dataset
        )
        return []
    import torch

    clips = read_clips(dataset)
    autoencoder = load_autoencoder(model / "autoencoder")
    ids = []
    for number, row in enumerate(people, 1):
        first = torch.from_numpy(clips.find(row["clip_id"]).latents[None, :, :1]).float()
        with torch.inference_mode():
            image = to_frames(autoencoder.decode(first))[0, 0].numpy()
        home = model / "characters" / f"character-{number}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(home / "reference.png")
        facts = {name: str(row[name]) for name in ("consent_ref", "licence", "source_id", "person_id")}
        write_json(home / "character.json", {"name": f"Character {number}", **facts})
        ids.append(home.name)
    return ids


def _people(dataset: Path) -> list[dict[str, Any]]:
    """Return one clip of each person with consent: rendered before real, then mouth at rest, then frontal."""
    path = dataset / "manifest.parquet"
    if not path.is_file():
        return []
    rows = [row for row in read_rows(path) if row["kept"] and has_consent(row["consent_ref"])]
    rows.sort(
        key=lambda row: (
            row["origin"] != "performer",
            row["states"][0][0] == SPEAK,  # its mouth may be open
            abs(row["yaw_deg"]) + row["head_motion_deg"],
            row["clip_id"],
        )
    )
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["person_id"], row)
    return list(first.values())
