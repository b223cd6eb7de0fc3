"""The deploy step: register a model with its lineage, apply the promotion rule, write the release folder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.deploy.config import DeployConfig
from components.deploy.manifest import render_inference_service, to_yaml
from components.deploy.promotion import Decision, decide
from components.deploy.release import check_model_folder, write_release
from components.runtime import model_registry as registry
from components.runtime.cache_keys import code_commit
from components.runtime.lineage import read_links
from components.runtime.tracking import client, step_run
from lpm_model.digests import model_digest
from lpm_model.files import read_json, staged, write_json
from lpm_model.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class DeployReport:
    """Result of deploy; also written as deploy.json."""

    name: str
    """Registered name."""
    version: str
    """Registered version of this model."""
    alias: str
    """champion or challenger."""
    digest: str
    """Digest of this model's folder."""
    promoted: bool
    """True when this model is the champion now."""
    reasons: tuple[str, ...]
    """Reasons for the decision, one sentence each."""
    scores: dict[str, float]
    """This model's scores."""
    released_version: str
    """Version in the release folder: the champion, if there is one."""
    released_digest: str
    """Digest of the released model."""
    base_version: str
    """Registered version of the Base LPM; empty when none was given."""
    storage_uri: str
    """Where the InferenceService expects the released folder."""
    reused: bool
    """True when this model had been registered with the same scores before."""


def deploy(
    model: Path,
    report: Path,
    release: Path,
    config: DeployConfig,
    progress: Progress,
    base: Path | None = None,
) -> DeployReport:
    """Register a model, decide whether it becomes the champion, and write the release folder.

    Args:
        model: model folder of the Online LPM.
        report: folder with the report.json that evaluate wrote.
        release: folder to write: the champion's files and inferenceservice.yaml.
        config: names, promotion rule, InferenceService, MLflow.
        progress: progress bar while files are uploaded.
        base: model folder of the Base LPM, also registered when given.

    Raises:
        ValueError: a file that must not be served, a report without scores, or a digest mismatch.
    """
    steps = iter(progress.track(("check", "register", "release"), "deploy", total=3))
    next(steps)
    check_model_folder(model)
    scores = read_scores(report)
    digest = model_digest(model)
    next(steps)
    mlflow_client = client(config.tracking.uri)
    version = _registered(mlflow_client, config.model_name, model, digest, config, scores)
    scored_before = dict(version.scores) == scores
    base_version = ""
    if base is not None:
        check_model_folder(base)
        base_version = _registered(mlflow_client, config.base_name, base, model_digest(base), config).version
    if not scored_before:
        registry.set_scores(mlflow_client, version, scores)
    decision, released = _promote(mlflow_client, version, scores, config)
    next(steps)
    storage_uri = f"{config.service.storage_prefix.rstrip('/')}/{config.model_name}/{released.digest}"
    result = DeployReport(
        name=version.name,
        version=version.version,
        alias=registry.CHAMPION if decision.promoted else registry.CHALLENGER,
        digest=digest,
        promoted=decision.promoted,
        reasons=decision.reasons,
        scores=scores,
        released_version=released.version,
        released_digest=released.digest,
        base_version=base_version,
        storage_uri=storage_uri,
        reused=scored_before,
    )
    _release(model, released, release, result, config)
    for _ in steps:
        continue
    return result


def read_scores(report: Path) -> dict[str, float]:
    """Return the finite scores of an evaluation.

    Raises:
        ValueError: report.json has none.
    """
    found = read_json(report / "report.json").get("scores")
    if not isinstance(found, Mapping) or not found:
        raise ValueError(f"{report / 'report.json'} has no scores: run evaluate again")
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def lineage_tags(model: Path) -> dict[str, str]:
    """Return the tags that link a registered model to its data, code and parent."""
    provenance: Mapping[str, Any] = read_json(model / "provenance.json") if (model / "provenance.json").exists() else {}
    tags = {
        name: str(provenance[name])
        for name in ("dataset_digest", "code_commit", "config_digest", "parent")
        if provenance.get(name)
    }
    links = read_links(model)
    if links:
        tags.setdefault("code_commit", links[-1].commit)
        tags.setdefault("config_digest", links[-1].config)
        tags.setdefault("dataset_digest", next((link.output for link in links if link.step == "curate"), ""))
        tags["sources"] = str(sum(len(link.sources) for link in links))
    tags.setdefault("code_commit", code_commit())
    return {name: value for name, value in tags.items() if value}


def _promote(
    mlflow_client: Any, version: registry.Version, scores: Mapping[str, float], config: DeployConfig
) -> tuple[Decision, registry.Version]:
    """Apply the promotion rule, set the aliases, and return the decision with the version to release.

    The released version is the champion or, while there has never been one, the challenger, so that the pipeline's
    result can be inspected.
    """
    champion = registry.version_by_alias(mlflow_client, config.model_name, registry.CHAMPION)
    if champion is not None and champion.version == version.version:
        return Decision(promoted=True, reasons=("this model is already the champion",)), version
    decision = decide(scores, champion.scores if champion else None, config.promotion)
    if decision.promoted:
        registry.set_alias(mlflow_client, version, registry.CHAMPION)
        return decision, version
    registry.set_alias(mlflow_client, version, registry.CHALLENGER)
    return decision, champion or version


def _registered(
    mlflow_client: Any,
    name: str,
    folder: Path,
    digest: str,
    config: DeployConfig,
    scores: Mapping[str, float] | None = None,
) -> registry.Version:
    """Return the version of a model folder, registering it if it is new."""
    known = registry.find_version(mlflow_client, name, digest)
    if known is None:
        with step_run("deploy", config.tracking) as run:
            known = registry.register(run, name, folder, digest, lineage_tags(folder))
            run.metrics({"scores": scores or {}})
    return known


def _release(
    model: Path, released: registry.Version, release: Path, result: DeployReport, config: DeployConfig
) -> None:
    """Write the release from this model's folder, or from the registry if another version is the champion."""
    if released.digest == result.digest:
        _write(model, released, release, result, config)
        return
    with registry.download_model(f"models:/{released.name}/{released.version}", config.tracking.uri) as champion:
        _write(champion, released, release, result, config)


def _write(source: Path, version: registry.Version, release: Path, result: DeployReport, config: DeployConfig) -> None:
    check_model_folder(source)
    manifest = render_inference_service(
        name=config.service.name,
        namespace=config.service.namespace,
        storage_uri=result.storage_uri,
        image=config.service.image,
        model_digest=version.digest,
        lineage={name.replace("_", "-"): value for name, value in lineage_tags(source).items()},
        gpus=config.service.gpus,
        service_account=config.service.service_account,
        min_replicas=config.service.min_replicas,
        max_replicas=config.service.max_replicas,
    )
    with staged(release) as work:
        write_release(source, work, version.digest)
        (work / "inferenceservice.yaml").write_text(to_yaml(manifest))
        write_json(work / "deploy.json", result)
