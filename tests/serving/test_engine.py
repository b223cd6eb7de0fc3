import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.characters import ConsentError, list_characters, load_character, read_reference
from serving.engine import FakeEngine, make_engine


def add_character(folder: Path, character_id: str, **card: str) -> Path:
    home = folder / "characters" / character_id
    home.mkdir(parents=True)
    Image.fromarray(np.full((90, 120, 3), 99, np.uint8)).save(home / "reference.png")
    (home / "character.json").write_text(json.dumps(card))
    return home


def test_fake_engine_is_deterministic_by_seed(voice) -> None:
    engine = FakeEngine(48)
    speech, silence = voice(4000), np.zeros(4000, np.int16)
    one, two = engine.open("demo", 5), engine.open("demo", 5)
    first = one.step(speech, silence, "")
    assert first.shape == (engine.chunk_frames, 48, 48, 3)
    assert np.array_equal(first, two.step(speech, silence, ""))
    assert np.abs(np.diff(first.astype(int), axis=0)).sum() > 0


def test_fake_engine_reacts_differently_to_each_voice(voice) -> None:
    engine = FakeEngine(64)
    loud, silence = voice(4000, 0.8), np.zeros(4000, np.int16)
    rest, speaks, listens = (
        engine.open("demo", 5).step(mouth, ear, "")[-1].astype(int)
        for mouth, ear in ((silence, silence), (loud, silence), (silence, loud))
    )
    mouth_area = (slice(40, 50), slice(26, 38))
    assert np.abs(speaks - rest)[mouth_area].mean() > 10
    assert np.abs(listens - rest).mean() > 1
    assert np.abs(listens - speaks).mean() > 1


def test_characters_need_a_consent_ref(tmp_path: Path) -> None:
    add_character(tmp_path, "ana", consent_ref="consents/7", name="Ana")
    add_character(tmp_path, "bob", consent_ref="  ")
    add_character(tmp_path, "eve", consent_ref="none on file: published by somebody")
    assert list_characters(tmp_path) == ["ana", "bob", "eve"]
    assert load_character(tmp_path, "ana").name == "Ana"
    for character_id in ("bob", "eve"):
        with pytest.raises(ConsentError, match=f"{character_id} has no consent_ref"):
            load_character(tmp_path, character_id)
    assert load_character(tmp_path, "bob", require_consent=False).name == "bob"
    with pytest.raises(ValueError, match="choose one of ana, bob, eve"):
        load_character(tmp_path, "../ana")


def test_read_reference_crops_to_the_model_size(tmp_path: Path) -> None:
    add_character(tmp_path, "ana", consent_ref="consents/7")
    assert read_reference(load_character(tmp_path, "ana"), 32).shape == (32, 32, 3)


def test_make_engine_rejects_unknown_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose lpm or fake"):
        make_engine("real", tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        make_engine("lpm", tmp_path)
