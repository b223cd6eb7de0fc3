"""Only files that cannot carry code are released."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from components.deploy.config import DeployConfig
from components.deploy.release import check_model_folder, write_release
from components.deploy.step import deploy
from components.runtime.tracking import client
from lpm_model.digests import model_digest
from lpm_model.progress import NoProgress

Maker = Callable[..., Path]
PICKLE = pickle.dumps({"weights": [1.0]})


def test_clean_model_folder_is_accepted(make_model: Maker) -> None:
    model = make_model("one")
    check_model_folder(model)
    assert len(model_digest(model)) == 64


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.pt", PICKLE, "only .safetensors"),
        ("optimizer.ckpt", PICKLE, "only .safetensors"),
        ("loader.py", b"import os", "only .safetensors"),
        ("extra.safetensors", PICKLE, "is not a safetensors file"),
        ("characters/a/character.json", PICKLE, "is not JSON"),
        ("characters/a/reference.png", PICKLE, "is not a PNG"),
        ("notes.md", b"\xff\xfe\x00", "is not text"),
    ],
)
def test_content_contradicting_its_extension_is_rejected(
    make_model: Maker, name: str, content: bytes, reason: str
) -> None:
    path = make_model("one") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        check_model_folder(path.parents[name.count("/")])


def test_links_are_rejected(make_model: Maker, tmp_path: Path) -> None:
    model = make_model("one")
    (tmp_path / "secret.json").write_text("{}")
    (model / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ValueError, match="is a link"):
        check_model_folder(model)


def test_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a model folder"):
        check_model_folder(tmp_path)


def test_deploy_rejects_a_bad_folder_before_registering_it(
    config: DeployConfig, make_model: Maker, make_report: Maker, tmp_path: Path
) -> None:
    model = make_model("one")
    (model / "model.bin").write_bytes(PICKLE)
    with pytest.raises(ValueError, match=r"model\.bin must not be served"):
        deploy(model, make_report("report"), tmp_path / "release", config, NoProgress())
    assert not (tmp_path / "release").exists()
    assert not client(config.tracking.uri).search_registered_models()


def test_release_with_wrong_digest_is_not_written(make_model: Maker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="register the model again"):
        write_release(make_model("one"), tmp_path / "release", "0" * 64)
    assert not (tmp_path / "release").exists()
