"""The deploy step against a real MLflow registry in SQLite."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from components.deploy.config import DeployConfig
from components.deploy.step import DeployReport, deploy
from components.runtime import model_registry as registry
from components.runtime.lineage import Link, SourceLink, read_links, resolve_lineage, write_lineage
from components.runtime.tracking import client
from lpm_model.digests import RUN_MANIFEST, model_digest
from lpm_model.files import read_json, write_json
from lpm_model.progress import NoProgress

Maker = Callable[..., Path]


@pytest.fixture
def deploy_model(config: DeployConfig, make_model: Maker, make_report: Maker, tmp_path: Path):
    def run(name: str, value: float, **scores: float | None) -> DeployReport:
        model = tmp_path / name if (tmp_path / name).exists() else make_model(name, value)
        return deploy(model, make_report(f"{name}-report", **scores), tmp_path / "release", config, NoProgress())

    return run


def test_first_model_becomes_champion_and_is_released(deploy_model, config: DeployConfig, tmp_path: Path) -> None:
    report = deploy_model("one", 1.0)
    mlflow = client(config.tracking.uri)
    version = mlflow.get_model_version_by_alias("lpm-online", "champion")
    assert (report.version, report.alias, report.promoted) == ("1", "champion", True)
    assert version.tags["model_digest"] == report.digest == model_digest(tmp_path / "one")
    assert version.tags["dataset_digest"] == "d" * 64
    assert version.tags["parent"] == "p" * 64
    assert float(version.tags["score.sync"]) == 0.7
    assert version.tags["code_commit"]
    assert registry.version_by_alias(mlflow, "lpm-online", "challenger") is None
    assert (tmp_path / "release" / "model.safetensors").samefile(tmp_path / "one" / "model.safetensors")
    assert read_json(tmp_path / "release" / "deploy.json")["version"] == "1"


def test_inference_service_names_the_released_digest(deploy_model, tmp_path: Path) -> None:
    report = deploy_model("one", 1.0)
    manifest = yaml.safe_load((tmp_path / "release" / "inferenceservice.yaml").read_text())
    assert manifest["kind"] == "InferenceService"
    assert report.digest in manifest["metadata"]["annotations"].values()
    assert report.storage_uri == f"s3://lpm-models/lpm-online/{report.digest}"


def test_better_model_replaces_the_champion(deploy_model, config: DeployConfig) -> None:
    deploy_model("one", 1.0)
    report = deploy_model("two", 2.0, sync=0.9)
    assert (report.version, report.alias) == ("2", "champion")
    assert client(config.tracking.uri).get_model_version_by_alias("lpm-online", "champion").version == 2


def test_worse_model_is_challenger_and_champion_is_released(deploy_model, config: DeployConfig, tmp_path: Path) -> None:
    first = deploy_model("one", 1.0)
    report = deploy_model("two", 2.0, sync=0.3)
    mlflow = client(config.tracking.uri)
    assert (report.version, report.alias, report.promoted) == ("2", "challenger", False)
    assert any("sync" in reason for reason in report.reasons)
    assert str(mlflow.get_model_version_by_alias("lpm-online", "champion").version) == "1"
    assert str(mlflow.get_model_version_by_alias("lpm-online", "challenger").version) == "2"
    assert (report.released_version, report.released_digest) == ("1", first.digest)
    released, own = (folder / "model.safetensors" for folder in (tmp_path / "release", tmp_path / "one"))
    assert released.read_bytes() == own.read_bytes()


def test_challenger_can_be_promoted_later(deploy_model, config: DeployConfig) -> None:
    deploy_model("one", 1.0)
    deploy_model("two", 2.0, sync=0.3)
    report = deploy_model("two", 2.0, sync=0.95)
    assert (report.version, report.alias, report.reused) == ("2", "champion", False)
    assert registry.version_by_alias(client(config.tracking.uri), "lpm-online", "challenger") is None


def test_same_model_is_registered_once(deploy_model, config: DeployConfig) -> None:
    deploy_model("one", 1.0)
    again = deploy_model("one", 1.0)
    assert (again.version, again.alias, again.reused) == ("1", "champion", True)
    assert len(client(config.tracking.uri).search_model_versions("name = 'lpm-online'")) == 1


def test_base_model_is_registered_too(
    config: DeployConfig, make_model: Maker, make_report: Maker, tmp_path: Path
) -> None:
    model, base, report = make_model("online"), make_model("base", 5.0), make_report("report")
    made = deploy(model, report, tmp_path / "release", config, NoProgress(), base=base)
    (version,) = client(config.tracking.uri).search_model_versions("name = 'lpm-base'")
    assert made.base_version == str(version.version) == "1"
    assert version.tags["model_digest"] == model_digest(base)


def test_model_without_primary_score_is_released_only_without_a_champion(deploy_model, tmp_path: Path) -> None:
    report = deploy_model("one", 1.0, listening=None)
    assert (report.alias, report.released_version) == ("challenger", "1")
    assert (tmp_path / "release" / "config.json").exists()


def test_lineage_of_registered_model(
    config: DeployConfig, make_model: Maker, make_report: Maker, tmp_path: Path
) -> None:
    model = make_model("one")
    source = SourceLink(source_id="clip", sha256="5" * 64, licence="CC0", consent_ref="form 1")
    ingest = Link(step="ingest", inputs={}, output="r", config="c", code="k", commit="g", sources=(source,))
    distill = Link(step="distill", inputs={}, output=model_digest(model), config="c", code="k", commit="g")
    write_json(tmp_path / "raw" / RUN_MANIFEST, {"steps": []})
    write_lineage({}, tmp_path / "raw", ingest)
    write_lineage({"raw": tmp_path / "raw"}, model, distill)
    deploy(model, make_report("report"), tmp_path / "release", config, NoProgress())
    chain = resolve_lineage("models:/lpm-online@champion", config.tracking.uri)
    assert [link.step for link in chain] == ["ingest", "distill"]
    assert chain[0].sources == (source,)
    assert read_links(tmp_path / "release") == chain == resolve_lineage(str(tmp_path))
    assert model_digest(tmp_path / "release") == chain[-1].output, "one digest, before and after the release"
    version = client(config.tracking.uri).get_model_version_by_alias("lpm-online", "champion")
    assert version.tags["sources"] == "1"
    with pytest.raises(ValueError, match="is not registered"):
        resolve_lineage("models:/lpm-online@nobody", config.tracking.uri)
    with pytest.raises(ValueError, match=r"none\.db is missing"):
        resolve_lineage("models:/lpm-online@champion", f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_report_without_scores_is_rejected(config: DeployConfig, make_model: Maker, tmp_path: Path) -> None:
    write_json(tmp_path / "report" / "report.json", {"scores": {}})
    with pytest.raises(ValueError, match="has no scores"):
        deploy(make_model("one"), tmp_path / "report", tmp_path / "release", config, NoProgress())
