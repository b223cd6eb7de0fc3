"""Characters of a dataset: which people are selected, and that the server finds them."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.dataset.manifest import schema, write_rows
from components.deploy.release import check_model_folder
from components.distill.characters import write_characters
from lpm_model.autoencoder.load import copy_autoencoder
from serving.characters import list_characters, load_character, read_reference
from tests.lpm_model.training.corpus import make_autoencoder, make_dataset

SCORES = ("head_motion_deg", "yaw_deg")
ROW: dict[str, Any] = {
    "kept": True, "consent_ref": "form 7", "licence": "CC-BY-4.0", "origin": "performer", "source_id": "s",
    "states": [[0, 9]], "yaw_deg": 1.0, "head_motion_deg": 1.0, "crop_box": [0, 0, 8, 8], "face_box": [0, 0, 8, 8],
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write the part of a model folder that characters need."""
    folder = tmp_path / "model"
    autoencoder = make_autoencoder(tmp_path / "autoencoder")
    make_dataset(tmp_path / "dataset", autoencoder)
    folder.mkdir()
    copy_autoencoder(tmp_path / "autoencoder", folder)
    return folder


def manifest(dataset: Path, *rows: dict[str, Any]) -> None:
    empty = dict.fromkeys(schema(SCORES).names)
    write_rows(dataset / "manifest.parquet", [{**empty, **ROW, **row} for row in rows], SCORES)


def test_characters_prefer_rendered_people_at_rest_and_need_consent(model: Path) -> None:
    dataset = model.parent / "dataset"
    manifest(
        dataset,
        {"clip_id": "clip0", "person_id": "real", "origin": "folder"},
        {"clip_id": "clip1", "person_id": "rendered", "states": [[1, 9]], "yaw_deg": 0.0},
        {"clip_id": "clip2", "person_id": "rendered", "source_id": "at rest", "yaw_deg": 20.0},
        {"clip_id": "clip0", "person_id": "silent", "consent_ref": " "},
        {"clip_id": "clip0", "person_id": "published", "consent_ref": "none on file: published by somebody"},
        {"clip_id": "clip0", "person_id": "dropped", "kept": False},
    )
    assert write_characters(dataset, model) == ["character-1", "character-2"] == list_characters(model)
    cards = [load_character(model, name) for name in list_characters(model)]
    assert [card.consent_ref for card in cards] == ["form 7", "form 7"]
    described = [(card.reference.parent / "character.json").read_text() for card in cards]
    assert '"at rest"' in described[0]
    assert '"real"' in described[1]
    side = Image.open(cards[0].reference).size[0]
    assert read_reference(cards[0], side).shape == (side, side, 3)
    assert np.ptp(read_reference(cards[0], side)) > 0
    assert write_characters(dataset, model, count=1) == ["character-1"]
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((model / "autoencoder" / "model.safetensors").read_bytes())
    check_model_folder(model)


def test_dataset_without_consented_people_logs_a_warning(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = model.parent / "dataset"
    with caplog.at_level(logging.WARNING):
        assert write_characters(dataset, model) == []
    assert "has no clip of a person with a consent_ref" in caplog.text
    assert list_characters(model) == []
