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


def test_the_drawn_face_moves_and_repeats_with_its_seed(voice) -> None:
    engine = FakeEngine(48)
    speech, silence = voice(4000), np.zeros(4000, np.int16)
    one, two = engine.open("demo", 5), engine.open("demo", 5)
    first = one.step(speech, silence, "")
    assert first.shape == (engine.chunk_frames, 48, 48, 3)
    assert np.array_equal(first, two.step(speech, silence, ""))
    assert np.abs(np.diff(first.astype(int), axis=0)).sum() > 0


def test_the_drawn_face_answers_each_voice_in_its_own_way(voice) -> None:
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


def test_no_character_without_consent(tmp_path: Path) -> None:
    add_character(tmp_path, "ana", consent_ref="consents/7", name="Ana")
    add_character(tmp_path, "bob", consent_ref="  ")
    assert list_characters(tmp_path) == ["ana", "bob"]
    assert load_character(tmp_path, "ana").name == "Ana"
    with pytest.raises(ConsentError, match="bob has no consent_ref"):
        load_character(tmp_path, "bob")
    assert load_character(tmp_path, "bob", require_consent=False).name == "bob"
    with pytest.raises(ValueError, match="choose one of ana, bob"):
        load_character(tmp_path, "../ana")


def test_the_reference_is_cropped_to_the_models_square(tmp_path: Path) -> None:
    add_character(tmp_path, "ana", consent_ref="consents/7")
    assert read_reference(load_character(tmp_path, "ana"), 32).shape == (32, 32, 3)


def test_a_wrong_engine_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose lpm or fake"):
        make_engine("real", tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        make_engine("lpm", tmp_path)
