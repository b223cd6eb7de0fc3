"""The run manifest (run.json): every step copies its inputs' manifests and adds itself, down to the source videos."""

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
    """What the manifest says of one source video."""

    source_id: str
    """Name inside the run."""
    sha256: str
    """Digest of the file as it was found."""
    licence: str = ""
    """Licence that its sidecar states."""
    consent_ref: str = ""
    """Reference to the consent of the people shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What one step did."""

    step: str
    """Verb."""
    inputs: dict[str, str]
    """Parameter -> digest of what was read."""
    output: str
    """Digest of what was written."""
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
    """The chain recorded in a folder, oldest step first; empty when the folder has no manifest."""
    path = folder / RUN_MANIFEST
    if not path.exists():
        return []
    return [from_mapping(Link, link) for link in read_json(path)["steps"]]


def extend(inputs: Mapping[str, Path], output: Path, link: Link) -> None:
    """Write the output's manifest: the inputs' chains, each step once, then this step.

    An output that is a copy of something else than its inputs (deploy keeping the champion) keeps that thing's chain.
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


def chain_of(target: str, tracking_uri: str = "") -> list[Link]:
    """The chain behind a folder of a run, a release, or a registered model (models:/NAME@ALIAS).

    Raises:
        ValueError: the target has no manifest.
    """
    if target.startswith("models:/"):
        from components.runtime.model_registry import fetched

        with fetched(target, tracking_uri) as folder:
            links = read_links(folder)
    else:
        folder = Path(target)
        links = read_links(folder if folder.is_dir() else folder.parent) or read_links(folder / STEPS["deploy"].folder)
    if not links:
        raise ValueError(f"{target} has no {RUN_MANIFEST}: give a folder that a step wrote, such as runs/latest/online")
    return links
