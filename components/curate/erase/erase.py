"""Erase a person or a recording from a dataset for good, and verify it by digest.

A clip is removed if it was cut from an erased recording or contains audio of one. Erasing a person erases every
recording that shows them. The new dataset is built in a sibling folder and swapped in at the end. After a
crash, running the same command again finishes the job.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.curate.erase.target import Target, TargetKind, ingest_rejections, matching_sources, raw_sources, resolve
from components.curate.erase.verify import content_digests, find_digests
from components.curate.report.outputs import rewrite_reports
from components.curate.run import analysis_cache
from components.dataset.manifest import read_rows, score_columns, write_rows
from components.dataset.shards import copy_shard
from components.dataset.tombstones import TOMBSTONES, Tombstone, Tombstones, add, name_digest, today
from components.runtime.steps import STEPS
from lpm_model.digests import RUN_MANIFEST, dataset_digest
from lpm_model.files import read_json, working_folder, write_json

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
_REWRITTEN = {"manifest.parquet", "dataset.json", "curation.json", "curation.html", TOMBSTONES, RUN_MANIFEST}


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where to erase besides the dataset; None = not touched."""

    raw: Path | None = None
    """Raw folder; the recordings are deleted."""
    cache: Path | None = None
    """Cache folder; cached ingest and curate results and cached analyses of the recordings are deleted."""
    tombstones: Path | None = None
    """Tombstone file that ingest and curate read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EraseReport:
    """The result of an erasure."""

    clips: int
    """Clips of the manifest, kept and dropped."""
    removed: dict[str, int]
    """Number of removed items by kind."""
    items: tuple[str, ...]
    """SHA-256 of each removed item."""
    before: tuple[str, ...]
    """Digests of the dataset versions that contained it."""
    after: str
    """Digest of the version without it."""
    checked_files: int
    """Files that were searched for the removed digests, including shard members and embedded images."""
    folders: tuple[Path, ...]
    """Folders that were searched."""
    notes: tuple[str, ...]
    """How the name was resolved and which other clips are affected, in sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasePreview:
    """The items that an erasure would remove."""

    clips: int
    """Clips of the manifest, kept and dropped."""
    clips_of_others: int
    """Those of them that were cut from other recordings and contain audio of the erased ones."""
    recordings: int
    """Files of the raw folder."""
    notes: tuple[str, ...]
    """How the name was resolved and which other clips are affected, in sentences."""


def erase(dataset: Path, kind: TargetKind, name: str, places: Places) -> EraseReport:
    """Erase everything that comes from a person or a recording.

    Args:
        dataset: folder that curate wrote.
        kind: whether `name` is a person or a recording.
        name: see `target.resolve`.
        places: where else to erase.

    Raises:
        ValueError: the name is unknown (the nearest ones are listed), the raw folder belongs to another dataset, or
            something was still found afterwards.
    """
    _recover(dataset)
    rows = read_rows(dataset / "manifest.parquet")
    _check_raw_folder(rows, places.raw)
    tombstone = _previous_erasure(dataset, rows, kind, name, places.raw)
    removed: dict[str, int] = {}
    notes: list[str] = []
    if tombstone is None:
        target = resolve(rows, kind, name, places.raw)
        removed_rows = [row for row in rows if _depends_on(row, target)]
        items, removed = _removed_items(dataset, removed_rows)
        notes = target.notes
        tombstone = Tombstone(
            request=name_digest(f"{kind} {name}"),
            sources=tuple(sorted(set(target.sources.values()) - {""})),
            names=tuple(sorted(name_digest(one) for one in target.names)),
            items=tuple(sorted(items)),
            datasets=(dataset_digest(dataset),),
            erased_on=today(),
        )
        tombstone = _record_tombstone(tombstone, places)
        _swap_dataset(dataset, rows, removed_rows, target, tombstone)
        removed = {"clips": len(removed_rows), **removed}
    else:
        log.warning("%s was already erased on %s: erasing remaining copies only", kind, tombstone.erased_on)
        added = {line["sha256"] for line in raw_sources(places.raw) if _is_covered(line, tombstone)} - {""}
        sources = tuple(sorted({*tombstone.sources, *added}))
        tombstone = _record_tombstone(dataclasses.replace(tombstone, sources=sources), places)
    removed |= _erase_unfinished(dataset, tombstone)
    copies, folders = _erase_copies(places, tombstone)
    folders = [dataset, *folders]
    return EraseReport(
        clips=removed.get("clips", 0),
        removed=removed | copies,
        items=tombstone.items,
        before=tombstone.datasets,
        after=dataset_digest(dataset),
        checked_files=verify_erased(folders, tombstone),
        folders=tuple(folders),
        notes=tuple(notes),
    )


def preview_erase(dataset: Path, kind: TargetKind, name: str, raw: Path | None) -> ErasePreview:
    """Return the items that `erase` would remove, without changing anything.

    Raises:
        ValueError: as `erase`.
    """
    rows = read_rows(dataset / "manifest.parquet")
    _check_raw_folder(rows, raw)
    target = resolve(rows, kind, name, raw)
    removed_rows = [row for row in rows if _depends_on(row, target)]
    return ErasePreview(
        clips=len(removed_rows),
        clips_of_others=sum(row["source_sha256"] not in target.sources.values() for row in removed_rows),
        recordings=sum(line["source_id"] in target.sources for line in raw_sources(raw)),
        notes=tuple(target.notes),
    )


def verify_erased(folders: list[Path], tombstone: Tombstone) -> int:
    """Search folders for the removed digests.

    Returns:
        Number of searched files, including shard members and embedded images.

    Raises:
        ValueError: something was found; the first places are named.
    """
    checked, found = find_digests(folders, {*tombstone.items, *tombstone.sources})
    if found:
        raise ValueError(f"{len(found)} removed items are still there: {', '.join(found[:5])}; run the command again")
    return checked


def models_trained_on(digests: tuple[str, ...], runs: Path | None) -> Iterator[str]:
    """Yield the model folders under `runs` that were trained on one of the dataset versions."""
    for path in sorted(runs.rglob("provenance.json")) if runs is not None and runs.is_dir() else []:
        if read_json(path).get("dataset_digest") in digests:
            yield str(path.parent)


def mlflow_runs_trained_on(digests: tuple[str, ...], tracking: str = "") -> Iterator[str]:
    """Yield the MLflow runs that were trained on one of the dataset versions; none if MLflow is unreachable."""
    from components.runtime.tracking import client, database_file, tracking_uri

    uri = tracking_uri(tracking)
    file = database_file(uri)
    if file is not None and not file.is_file():
        return
    from mlflow.exceptions import MlflowException

    try:
        found = client(tracking)
        experiments = [one.experiment_id for one in found.search_experiments()]
        for digest in digests:
            for run in found.search_runs(experiments, filter_string=f"tags.dataset_digest = '{digest}'"):
                yield f"MLflow run {run.info.run_id} ({run.data.tags.get('lpm.step', run.info.run_name)})"
    except MlflowException as error:
        log.warning("MLflow at %s cannot be queried (%s): models recorded there are not listed", uri, error)


def _recover(dataset: Path) -> None:
    """Finish or roll back an erasure that crashed."""
    work, old = _sibling(dataset, "erasing"), _sibling(dataset, "erased")
    if old.exists():
        if not dataset.exists():
            os.replace(work, dataset)
        shutil.rmtree(old)
    if work.exists():
        shutil.rmtree(work)


def _check_raw_folder(rows: Rows, raw: Path | None) -> None:
    """Reject a raw folder that the dataset was not curated from."""
    listed = {line["sha256"] for line in raw_sources(raw)}
    missing = sorted({row["file"] for row in rows if row["source_sha256"] and row["source_sha256"] not in listed})
    if listed and missing:
        raise ValueError(
            f"{raw} lacks {len(missing)} of the dataset's recordings, such as {missing[0]}: give the folder that it "
            "was curated from with --raw, or --keep-raw"
        )


def _previous_erasure(dataset: Path, rows: Rows, kind: TargetKind, name: str, raw: Path | None) -> Tombstone | None:
    """Return the latest erasure of the same request, unless a file name now refers to a newer recording."""
    found = [one for one in Tombstones(dataset / TOMBSTONES).all if one.matches_request(f"{kind} {name}")]
    if not found:
        return None
    if kind == "source" and any(
        not found[-1].covers(sha, one) for one, sha in matching_sources(rows, name, raw).items()
    ):
        return None
    return found[-1]


def _record_tombstone(tombstone: Tombstone, places: Places) -> Tombstone:
    """Add the digests of cached analyses to a tombstone, and the tombstone to the file that ingest and curate read."""
    if places.cache is not None:
        cached = analysis_cache.erased_digests(_analysis_folder(places.cache), tombstone)
        tombstone = dataclasses.replace(tombstone, items=tuple(sorted({*tombstone.items, *cached})))
    if places.tombstones is not None:
        add(places.tombstones, [tombstone])
    return tombstone


def _analysis_folder(cache: Path) -> Path:
    return cache / STEPS["curate"].shared_cache


def _is_covered(line: dict[str, Any], tombstone: Tombstone) -> bool:
    """Return whether a line of sources.jsonl is an erased recording, or shows an erased person."""
    return tombstone.covers(line["sha256"], line["source_id"], line.get("person_hint")) is not None


def _depends_on(row: dict[str, Any], target: Target) -> bool:
    """Return whether a clip was cut from an erased recording, contains its audio, or was labelled with its help."""
    columns = ("source_id", "speak_from", "listen_from", "partner_source_id")
    return row["source_sha256"] in target.sources.values() or any(row[name] in target.sources for name in columns)


def _removed_items(dataset: Path, removed_rows: Rows) -> tuple[set[str], dict[str, int]]:
    """Return the digests of everything that will be removed, and the number of items of each kind."""
    items: set[str] = set()
    counts: dict[str, int] = {}
    ids = {row["clip_id"] for row in removed_rows}
    previews = [dataset / "previews" / f"{one}.jpg" for one in ids]
    shards = [dataset / "shards" / name for name in sorted({row["shard"] for row in removed_rows if row["shard"]})]
    for path in (*filter(Path.is_file, previews), *shards):
        for name, digest in content_digests(path):
            clip, dot, part = name.partition(".")
            if path.suffix == ".tar" and clip not in ids:
                continue
            items.add(digest)
            kind = part.removesuffix(".npy") if dot and path.suffix == ".tar" else "previews"
            counts[kind] = counts.get(kind, 0) + 1
    return items, dict(sorted(counts.items()))


def _sibling(dataset: Path, suffix: str) -> Path:
    return dataset.with_name(f".{dataset.name}.{suffix}")


def _swap_dataset(dataset: Path, rows: Rows, removed_rows: Rows, target: Target, tombstone: Tombstone) -> None:
    """Build the dataset without the removed clips, verify it, and replace the old one by it."""
    work, old = _sibling(dataset, "erasing"), _sibling(dataset, "erased")
    ids, shards = ({row[name] for row in removed_rows} for name in ("clip_id", "shard"))
    left = [row for row in rows if row["clip_id"] not in ids]
    for path in sorted(p for p in dataset.rglob("*") if p.is_file()):
        place = path.relative_to(dataset)
        if place.as_posix() in _REWRITTEN or place.parts[0] == "validation":
            continue
        copy = work / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        if place.parts[0] == "shards" and path.name in shards:
            copy_shard(path, copy, ids)
        elif not (place.parts[0] == "previews" and path.stem in ids):
            os.link(path, copy)
    write_rows(work / "manifest.parquet", left, score_columns(rows[0]))
    tombstones = Tombstones(dataset / TOMBSTONES)
    tombstones.all.append(tombstone)
    tombstones.write(work / TOMBSTONES)
    before = read_json(dataset / "dataset.json")["digest"]
    after = rewrite_reports(dataset, work, left, target.files, len(target.sources))
    if (dataset / RUN_MANIFEST).is_file():
        _rewrite_run_manifest(dataset / RUN_MANIFEST, work / RUN_MANIFEST, tombstone, {before: after})
    verify_erased([work], tombstone)
    os.replace(dataset, old)
    os.replace(work, dataset)
    shutil.rmtree(old)


def _rewrite_run_manifest(given: Path, path: Path, tombstone: Tombstone, new_digests: dict[str, str]) -> None:
    """Write a run manifest without the erased recordings, with the dataset's new digest."""
    values = read_json(given)
    for step in values["steps"]:
        step["sources"] = [one for one in step["sources"] if one["sha256"] not in tombstone.sources]
        step["output"] = new_digests.get(step["output"], step["output"])
    write_json(path, values)


def _erase_unfinished(dataset: Path, tombstone: Tombstone) -> dict[str, int]:
    """Delete the partial results of an interrupted run if they contain an erased recording."""
    if not any(tombstone.covers("", part.name) for part in working_folder(dataset).glob("parts/*")):
        return {}
    shutil.rmtree(working_folder(dataset))
    return {"unfinished runs": 1}


def _erase_copies(places: Places, tombstone: Tombstone) -> tuple[dict[str, int], list[Path]]:
    """Erase from the raw folder and the cache; return the number of removed items and the folders."""
    removed: dict[str, int] = {}
    folders: list[Path] = []
    if places.raw is not None and (places.raw / "sources.jsonl").is_file():
        removed["recordings"] = _erase_from_raw(places.raw, tombstone)
        folders.append(places.raw)
    if places.cache is not None:
        analyses = _analysis_folder(places.cache)
        removed["cached results"] = _erase_step_results(places.cache, tombstone)
        removed["cached analyses"] = analysis_cache.erase(analyses, [tombstone])
        folders += [*(places.cache / "steps" / verb for verb in ("ingest", "curate")), analyses]
    return removed, folders


def _erase_from_raw(raw: Path, tombstone: Tombstone) -> int:
    """Delete the recordings of a raw folder, after rewriting sources.jsonl, which must never list a missing file."""
    lines = raw_sources(raw)
    erased = [line for line in lines if _is_covered(line, tombstone)]
    erased_ids = {line["source_id"] for line in erased}
    copies = [item for item in ingest_rejections(raw) if item.get("same_as") in erased_ids]
    if copies:  # their file names may contain people's names
        report = read_json(raw / "ingest.json")
        report["rejected"] = [item for item in report["rejected"] if item not in copies]
        write_json(raw / "ingest.json", report)
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines if line not in erased)
    partial = raw / ".sources.jsonl.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, raw / "sources.jsonl")
    for line in erased:
        (raw / line["file"]).unlink(missing_ok=True)
    if (raw / RUN_MANIFEST).is_file():
        _rewrite_run_manifest(raw / RUN_MANIFEST, raw / RUN_MANIFEST, tombstone, {})
    return len(erased)


def _erase_step_results(cache: Path, tombstone: Tombstone) -> int:
    """Delete the cached results of ingest and curate that contain an erased recording."""
    count = 0
    for entry in (entry for verb in ("ingest", "curate") for entry in sorted((cache / "steps" / verb).glob("*"))):
        if entry.is_dir() and _contains_source(entry, tombstone):
            shutil.rmtree(entry)
            count += 1
    return count


def _contains_source(entry: Path, tombstone: Tombstone) -> bool:
    for name in (RUN_MANIFEST, "sources.jsonl", "dataset.json"):
        for path in entry.glob(f"*/{name}"):
            if any(digest in path.read_text() for digest in tombstone.sources):
                return True
    unfinished = entry.glob(".*.partial/parts/*")
    return any(tombstone.covers("", part.name) for part in unfinished)
