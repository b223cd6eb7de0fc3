"""The characters that a served model starts with: people of its dataset who may be shown, at rest, facing the camera.

Enters: a dataset folder. Leaves: `characters/<id>/{reference.png, character.json}` in a model folder, as
`serving.characters` reads them. Rendered people come first: real ones agreed to be learned from, and their consent_ref
travels along, but a live double of somebody is better chosen by hand.
"""

import logging
from pathlib import Path
from typing import Any

from components.dataset.manifest import read_rows
from components.dataset.states import SPEAK
from lpm_model.files import write_json

log = logging.getLogger(__name__)

COUNT = 4
"""Characters written at most."""


def write_characters(dataset: Path, model: Path, count: int = COUNT) -> list[str]:
    """Add characters to a model folder.

    Args:
        dataset: folder that curate wrote.
        model: model folder with its autoencoder, which the pictures pass through as they will when live.
        count: characters wanted.

    Returns:
        Their ids; fewer than `count`, or none, where the dataset shows fewer people with a consent_ref.
    """
    from PIL import Image

    from lpm_model.autoencoder.load import load_autoencoder
    from lpm_model.character import to_frames
    from lpm_model.training.engine.shard_reader import read_clips

    people = _people(dataset)[:count]
    if not people:
        log.warning("%s shows nobody with a consent_ref: add characters by hand, see serving/README.md", dataset)
        return []
    import torch

    clips = read_clips(dataset)
    autoencoder = load_autoencoder(model / "autoencoder")
    ids = []
    for number, row in enumerate(people, 1):
        first = torch.from_numpy(clips.find(row["clip_id"]).latents[None, :, :1]).float()
        with torch.inference_mode():
            picture = to_frames(autoencoder.decode(first))[0, 0].numpy()
        home = model / "characters" / f"character-{number}"
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(home / "reference.png")
        facts = {name: str(row[name]) for name in ("consent_ref", "licence", "source_id", "person_id")}
        write_json(home / "character.json", {"name": f"Character {number}", **facts})
        ids.append(home.name)
    return ids


def _people(dataset: Path) -> list[dict[str, Any]]:
    """One kept clip for each person who may be shown: rendered before real, mouth at rest, frontal, in this order."""
    path = dataset / "manifest.parquet"
    if not path.is_file():
        return []
    shown = [row for row in read_rows(path) if row["kept"] and (row["consent_ref"] or "").strip()]
    shown.sort(
        key=lambda row: (
            row["origin"] != "performer",
            row["states"][0][0] == SPEAK,  # its mouth may be open
            abs(row["yaw_deg"]) + row["head_motion_deg"],
            row["clip_id"],
        )
    )
    first: dict[str, dict[str, Any]] = {}
    for row in shown:
        first.setdefault(row["person_id"], row)
    return list(first.values())
