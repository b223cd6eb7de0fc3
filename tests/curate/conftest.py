"""Shared by the curation tests: a rendered conversation with its ground truth, a small autoencoder, a dataset."""

import dataclasses
import fcntl
import json
from pathlib import Path

import pytest

from components.curate.config import CurationConfig
from components.curate.step import curate
from lpm_model.progress import NoProgress
from tests.curate.corpus import make_raw


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all xdist workers of one run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "curate-shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def conversation(shared: Path) -> Path:
    """media/ and ground_truth/ of one rendered conversation of 12 s, made by whichever worker comes first."""
    from components.performer.compose import render_corpus
    from components.performer.config import PerformerConfig

    with (shared / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = PerformerConfig(conversations=1, seconds_per_conversation=12.0, seed=11, workers=1)
        render_corpus(shared / "media", config, NoProgress(), shared / "ground_truth")
    return shared


@pytest.fixture(scope="session")
def sides(conversation: Path) -> list[Path]:
    """The two cameras of the conversation."""
    return sorted((conversation / "media").glob("*_[ab].mp4"))


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small autoencoder with random weights."""
    import torch

    from lpm_model.autoencoder.tiny import AutoencoderConfig, build_autoencoder
    from lpm_model.checkpoint import save_model

    torch.manual_seed(0)
    shape = AutoencoderConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(8, 8, 8))
    folder = tmp_path_factory.mktemp("autoencoder")
    save_model(folder, {"model": build_autoencoder(shape)}, dataclasses.asdict(shape), {}, dtype=torch.float32)
    return folder


@pytest.fixture(scope="session")
def config(autoencoder: Path) -> CurationConfig:
    """Settings for quick runs in this process."""
    return CurationConfig(
        autoencoder=str(autoencoder), executor="inline", workers=1, validate=False, max_clip_s=4.0, mesh_stride=3
    )


@pytest.fixture(scope="session")
def dataset(sides: list[Path], config: CurationConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conversation curated once, with the Great Expectations validation."""
    home = tmp_path_factory.mktemp("dataset")
    raw = make_raw(home / "raw", sides)
    (raw / "ingest.json").write_text(json.dumps({"rejected": [{"file": "broken.mp4", "reason": "not readable"}]}))
    curate(raw, home / "dataset", dataclasses.replace(config, validate=True), NoProgress())
    return home / "dataset"


@pytest.fixture(scope="session")
def report(dataset: Path) -> dict[str, object]:
    """curation.json of the curated conversation."""
    return json.loads((dataset / "curation.json").read_text())
