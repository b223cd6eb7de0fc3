"""The lineage manifest (run.json): each step merges the manifests of its inputs and appends itself."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from components.dataset.sources import read_sources
from components.runtime.steps import STEPS
from lpm_model.config import from_mapping
from lpm_model.digests import RUN_MANIFEST
from lpm_model.files import read_json, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLink:
    """Lineage entry of one source video."""

    source_id: str
    """Id in the corpus."""
    sha256: str
    """Digest of the source file."""
    licence: str = ""
    """Licence from the sidecar."""
    consent_ref: str = ""
    """Reference to the consent of the people shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """Lineage entry of one step."""

    step: str
    """Verb."""
    inputs: dict[str, str]
    """Parameter -> digest of the input."""
    output: str
    """Digest of the output."""
    config: str
    """Digest of the settings that affect the result."""
    code: str
    """Digest of the code that the step reaches."""
    commit: str
    """Git commit of the code."""
    packages: dict[str, str] = field(default_factory=dict)
    """Package -> version, of those that shape the result."""
    sources: tuple[SourceLink, ...] = ()
    """Source videos (ingest only)."""


def read_links(folder: Path) -> list[Link]:
    """Return the lineage of a folder, oldest step first; empty without a manifest."""
    path = folder / RUN_MANIFEST
    if not path.exists():
        return []
    return [from_mapping(Link, link) for link in read_json(path)["steps"]]


def write_lineage(inputs: Mapping[str, Path], output: Path, link: Link) -> None:
    """Write the output's manifest: the lineage of the inputs, each step once, then this step.

    An output that is a copy of a folder other than its inputs (deploy keeps the champion) keeps that folder's lineage.
    """
    own = read_links(output)
    if own and own[-1].output not in link.inputs.values():
        return
    chain: list[Link] = []
    for folder in inputs.values():
        chain.extend(known for known in read_links(folder) if known not in chain)
    order = list(STEPS)
    chain.sort(key=lambda known: order.index(known.step))
    write_json(output / RUN_MANIFEST, {"steps": [asdict(known) for known in (*chain, link)]})


def source_links(raw: Path) -> tuple[SourceLink, ...]:
    """Return the source videos of a raw folder, from its sources.jsonl."""
    names = [item.name for item in fields(SourceLink)]
    return tuple(SourceLink(**{name: getattr(source, name) for name in names}) for source in read_sources(raw))


def resolve_lineage(target: str, tracking_uri: str = "") -> list[Link]:
    """Return the lineage of a folder of a run, a release, or a registered model (models:/NAME@ALIAS).

    Raises:
        ValueError: the target has no manifest.
    """
    if target.startswith("models:/"):
        from components.runtime.model_registry import download_model

        with download_model(target, tracking_uri) as folder:
            links = read_links(folder)
    else:
        folder = Path(target)
        links = read_links(folder if folder.is_dir() else folder.parent) or read_links(folder / STEPS["deploy"].folder)
    if not links:
        raise ValueError(f"{target} has no {RUN_MANIFEST}: give a folder that a step wrote, such as runs/latest/online")
    return links
