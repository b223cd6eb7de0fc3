"""deploy: registers a model with its lineage, gates it against the champion, writes the folder that is served."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.deploy.config import DeployConfig
from components.deploy.gate import Decision, decide
from components.deploy.manifest import render_inference_service, to_yaml
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
    """What deploy did; also written as deploy.json."""

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
    """Why."""
    scores: dict[str, float]
    """This model's scores."""
    released_version: str
    """Version that the release folder holds: the champion, if there is one."""
    released_digest: str
    """Digest of the released model."""
    base_version: str
    """Registered version of the Base LPM; empty when none was given."""
    storage_uri: str
    """Where the InferenceService expects the released folder."""
    reused: bool
    """True when this very model was registered and judged before."""


def deploy(
    model: Path,
    report: Path,
    release: Path,
    config: DeployConfig,
    progress: Progress,
    base: Path | None = None,
) -> DeployReport:
    """Register a model, decide whether it becomes champion, and write what is served.

    Args:
        model: model folder of the Online LPM.
        report: folder with the report.json of evaluate.
        release: folder to write: the champion's files and inferenceservice.yaml.
        config: names, gate, manifest, MLflow.
        progress: shown while files are uploaded.
        base: model folder of the Base LPM, registered too when given.

    Raises:
        ValueError: a file that may not be served, a report without scores, or a digest that does not match.
    """
    steps = iter(progress.track(("check", "register", "release"), "deploy", total=3))
    next(steps)
    check_model_folder(model)
    scores = read_scores(report)
    digest = model_digest(model)
    next(steps)
    mlflow_client = client(config.tracking.uri)
    version = _registered(mlflow_client, config.model_name, model, digest, config, scores)
    judged = _same(version.scores, scores)
    base_version = ""
    if base is not None:
        check_model_folder(base)
        base_version = _registered(mlflow_client, config.base_name, base, model_digest(base), config).version
    if not judged:
        registry.set_scores(mlflow_client, version, scores)
    decision, released = _judge(mlflow_client, version, scores, config)
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
        reused=judged,
    )
    _release(model, released, release, result, config)
    for _ in steps:
        continue
    return result


def read_scores(report: Path) -> dict[str, float]:
    """The finite scores of an evaluation.

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
    """Tags that lead from a registered model back to its data, code and parent."""
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


def _same(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    return old.keys() == new.keys() and all(old[name] == new[name] for name in new)


def _judge(
    mlflow_client: Any, version: registry.Version, scores: Mapping[str, float], config: DeployConfig
) -> tuple[Decision, registry.Version]:
    """The gate's decision with the aliases set, and the version to release.

    That is the champion; where there has never been one, the challenger, so that the line's end can be looked at.
    """
    champion = registry.by_alias(mlflow_client, config.model_name, registry.CHAMPION)
    if champion is not None and champion.version == version.version:
        return Decision(promoted=True, reasons=("this model is the champion already",)), version
    decision = decide(scores, champion.scores if champion else None, config.gate)
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
    """The version that holds a folder; registered now if it never was."""
    known = registry.find(mlflow_client, name, digest)
    if known is None:
        with step_run("deploy", config.tracking) as run:
            known = registry.register(run, name, folder, digest, lineage_tags(folder))
            run.metrics({"scores": scores or {}})
    return known


def _release(
    model: Path, released: registry.Version, release: Path, result: DeployReport, config: DeployConfig
) -> None:
    """Write the release from this model's folder, or from the registry where the champion stays."""
    if released.digest == result.digest:
        _write(model, released, release, result, config)
        return
    with registry.fetched(f"models:/{released.name}/{released.version}", config.tracking.uri) as kept:
        _write(kept, released, release, result, config)


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
