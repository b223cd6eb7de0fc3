"""Remove a person or a recording from a dataset for good, and prove it by digest.

A clip goes when it was cut from a forgotten recording or lets one be heard. Forgetting a person forgets every recording
that shows them. The new folder is made beside the old one and takes its place at the end; the same command goes on
where a killed one stopped.
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

from components.curate.erase.proof import content_digests, holders
from components.curate.erase.target import Kind, Target, find, listing, meant, refused
from components.curate.report.outputs import refresh
from components.curate.run import analysis_cache
from components.dataset.manifest import read_rows, score_columns, write_rows
from components.dataset.shards import copy_shard
from components.dataset.tombstones import TOMBSTONES, Tombstone, Tombstones, add, name_digest, today
from components.runtime.steps import STEPS
from lpm_model.digests import RUN_MANIFEST, dataset_digest
from lpm_model.files import read_json, working_folder, write_json

log = logging.getLogger(__name__)

_REWRITTEN = {"manifest.parquet", "dataset.json", "curation.json", "curation.html", TOMBSTONES, RUN_MANIFEST}


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where copies may lie besides the dataset; None = not looked at."""

    raw: Path | None = None
    """Raw folder whose recordings are deleted too."""
    cache: Path | None = None
    """Kept results of ingest and curate that hold them are deleted, and kept first passes over them."""
    tombstones: Path | None = None
    """File that ingest and curate read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetReport:
    """What was removed."""

    clips: int
    """Clips of the manifest, kept and dropped."""
    removed: dict[str, int]
    """How many things of each kind."""
    items: tuple[str, ...]
    """SHA-256 of each thing with content of its own."""
    before: tuple[str, ...]
    """Versions of the dataset that held it."""
    after: str
    """The version without it."""
    checked_files: int
    """Files that were searched for the removed digests at the end, shard members and embedded pictures counted."""
    folders: tuple[Path, ...]
    """Where they were searched."""
    notes: tuple[str, ...]
    """What the name meant and what went beyond it, in sentences."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreseen:
    """What a removal would remove."""

    clips: int
    """Clips of the manifest, kept and dropped."""
    heard: int
    """Those of them that are cut from other recordings and let the forgotten ones be heard."""
    recordings: int
    """Files of the raw folder."""
    notes: tuple[str, ...]
    """What the name means and what goes beyond it, in sentences."""


def forget(dataset: Path, kind: Kind, name: str, places: Places) -> ForgetReport:
    """Remove everything that comes from a person or a recording.

    Args:
        dataset: folder that curate wrote.
        kind: what `name` names.
        name: see `target.find`.
        places: where else to remove it.

    Raises:
        ValueError: the name is not known (the nearest ones are listed), the raw folder is another dataset's, or
            something of it was found afterwards.
    """
    _settle(dataset)
    rows = read_rows(dataset / "manifest.parquet")
    _own_raw(rows, places.raw)
    stone = _earlier(dataset, rows, kind, name, places.raw)
    removed: dict[str, int] = {}
    notes: list[str] = []
    if stone is None:
        target = find(rows, kind, name, places.raw)
        gone = [row for row in rows if _touches(row, target)]
        items, removed = _items(dataset, gone)
        notes = target.notes
        stone = Tombstone(
            asked=name_digest(f"{kind} {name}"), sources=tuple(sorted(set(target.sources.values()) - {""})),
            names=tuple(sorted(name_digest(one) for one in target.names)), items=tuple(sorted(items)),
            datasets=(dataset_digest(dataset),), forgotten_on=today(),
        )  # fmt: skip
        stone = _with_looks(stone, places.cache)
        if places.tombstones is not None:
            add(places.tombstones, [stone])
        _replace(dataset, rows, gone, target, stone)
        removed = {"clips": len(gone), **removed}
    else:
        log.warning("%s was forgotten on %s: only what may be left elsewhere is removed", kind, stone.forgotten_on)
        more = {line["sha256"] for line in listing(places.raw) if _is_of(line, stone)} - {*stone.sources, ""}
        stone = _with_looks(dataclasses.replace(stone, sources=tuple(sorted({*stone.sources, *more}))), places.cache)
        if places.tombstones is not None:
            add(places.tombstones, [stone])
    folders = [dataset]
    if any(stone.covers("", part.name) for part in working_folder(dataset).glob("parts/*")):
        shutil.rmtree(working_folder(dataset))
        removed["unfinished runs"] = 1
    if places.raw is not None and (places.raw / "sources.jsonl").is_file():
        removed["recordings"] = _clean_raw(places.raw, stone)
        folders.append(places.raw)
    if places.cache is not None:
        removed["kept results"] = _clean_cache(places.cache, stone)
        removed["kept first passes"] = analysis_cache.forget(_looks(places.cache), [stone])
        folders += [*(places.cache / "steps" / verb for verb in ("ingest", "curate")), _looks(places.cache)]
    return ForgetReport(
        clips=removed.get("clips", 0), removed=removed, items=stone.items, before=stone.datasets,
        after=dataset_digest(dataset), checked_files=prove(folders, stone), folders=tuple(folders),
        notes=tuple(notes),
    )  # fmt: skip


def _earlier(dataset: Path, rows: list[dict[str, Any]], kind: Kind, name: str, raw: Path | None) -> Tombstone | None:
    """The latest removal that the same words led to, unless a file's name by now means a recording that came since."""
    found = [one for one in Tombstones(dataset / TOMBSTONES).all if one.answers(f"{kind} {name}")]
    if not found:
        return None
    if kind == "source" and any(not found[-1].covers(sha, one) for one, sha in meant(rows, name, raw).items()):
        return None
    return found[-1]


def _looks(cache: Path) -> Path:
    """Where first passes are kept."""
    return cache / STEPS["curate"].kept


def _with_looks(stone: Tombstone, cache: Path | None) -> Tombstone:
    """A tombstone with the digests of what first passes are kept of, so that the proof looks for them as well."""
    if cache is None:
        return stone
    return dataclasses.replace(
        stone, items=tuple(sorted({*stone.items, *analysis_cache.contents(_looks(cache), stone)}))
    )


def foresee(dataset: Path, kind: Kind, name: str, raw: Path | None) -> Foreseen:
    """What `forget` would remove, without touching anything.

    Raises:
        ValueError: as forget.
    """
    rows = read_rows(dataset / "manifest.parquet")
    _own_raw(rows, raw)
    target = find(rows, kind, name, raw)
    gone = [row for row in rows if _touches(row, target)]
    return Foreseen(
        clips=len(gone),
        heard=sum(row["source_sha256"] not in target.sources.values() for row in gone),
        recordings=sum(line["source_id"] in target.sources for line in listing(raw)),
        notes=tuple(target.notes),
    )


def _own_raw(rows: list[dict[str, Any]], raw: Path | None) -> None:
    """Refuse a raw folder that the dataset was not made of."""
    listed = {line["sha256"] for line in listing(raw)}
    strange = sorted({row["file"] for row in rows if row["source_sha256"] and row["source_sha256"] not in listed})
    if listed and strange:
        raise ValueError(
            f"{raw} lacks {len(strange)} of the dataset's recordings, such as {strange[0]}: give the folder that it "
            "was curated from with --raw, or --keep-raw"
        )


def _is_of(line: dict[str, Any], stone: Tombstone) -> bool:
    """Whether a line of sources.jsonl is a forgotten recording, or shows a forgotten person."""
    return stone.covers(line["sha256"], line["source_id"], line.get("person_hint")) is not None


def _touches(row: dict[str, Any], target: Target) -> bool:
    """Whether a clip shows, lets hear, or was labelled with the help of a forgotten recording."""
    places = ("source_id", "speak_from", "listen_from", "partner_source_id")
    return row["source_sha256"] in target.sources.values() or any(row[place] in target.sources for place in places)


def _items(dataset: Path, gone: list[dict[str, Any]]) -> tuple[set[str], dict[str, int]]:
    """Digests of everything that will be removed, and how many of each kind."""
    items: set[str] = set()
    counts: dict[str, int] = {}
    ids = {row["clip_id"] for row in gone}
    previews = [dataset / "previews" / f"{one}.jpg" for one in ids]
    shards = [dataset / "shards" / name for name in sorted({row["shard"] for row in gone if row["shard"]})]
    files = [*(path for path in previews if path.is_file()), *shards]
    for path in files:
        for name, digest in content_digests(path):
            clip, dot, part = name.partition(".")
            if path.suffix == ".tar" and clip not in ids:
                continue
            items.add(digest)
            label = part.removesuffix(".npy") if dot and path.suffix == ".tar" else "previews"
            counts[label] = counts.get(label, 0) + 1
    return items, dict(sorted(counts.items()))


def _beside(dataset: Path, what: str) -> Path:
    return dataset.with_name(f".{dataset.name}.{what}")


def _settle(dataset: Path) -> None:
    """Finish or undo what a killed call left."""
    work, old = _beside(dataset, "forgetting"), _beside(dataset, "forgotten")
    if old.exists():
        if not dataset.exists():
            os.replace(work, dataset)
        shutil.rmtree(old)
    if work.exists():
        shutil.rmtree(work)


def _replace(
    dataset: Path, rows: list[dict[str, Any]], gone: list[dict[str, Any]], target: Target, stone: Tombstone
) -> None:
    """Make the dataset without the clips, prove it, and put it in the old one's place."""
    work, old = _beside(dataset, "forgetting"), _beside(dataset, "forgotten")
    ids = {row["clip_id"] for row in gone}
    shards = {row["shard"] for row in gone}
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
    stones = Tombstones(dataset / TOMBSTONES)
    stones.all.append(stone)
    stones.write(work / TOMBSTONES)
    before = read_json(dataset / "dataset.json")["digest"]
    after = refresh(dataset, work, left, target.files, len(target.sources))
    if (dataset / RUN_MANIFEST).is_file():
        _lineage(dataset / RUN_MANIFEST, work / RUN_MANIFEST, stone, {before: after})
    prove([work], stone)
    os.replace(dataset, old)
    os.replace(work, dataset)
    shutil.rmtree(old)


def _lineage(given: Path, path: Path, stone: Tombstone, renamed: dict[str, str]) -> None:
    """The run manifest without the recordings, under the dataset's new version."""
    values = read_json(given)
    for step in values["steps"]:
        step["sources"] = [one for one in step["sources"] if one["sha256"] not in stone.sources]
        step["output"] = renamed.get(step["output"], step["output"])
    write_json(path, values)


def _clean_raw(raw: Path, stone: Tombstone) -> int:
    """Delete the recordings of a raw folder; the listing goes first, so that no step finds a name without its file."""
    lines = listing(raw)
    gone = [line for line in lines if _is_of(line, stone)]
    copies = [item for item in refused(raw) if item.get("same_as") in {line["source_id"] for line in gone}]
    if copies:  # their names may be those of people
        report = read_json(raw / "ingest.json")
        report["rejected"] = [item for item in report["rejected"] if item not in copies]
        write_json(raw / "ingest.json", report)
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines if line not in gone)
    partial = raw / ".sources.jsonl.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, raw / "sources.jsonl")
    for line in gone:
        (raw / line["file"]).unlink(missing_ok=True)
    if (raw / RUN_MANIFEST).is_file():
        _lineage(raw / RUN_MANIFEST, raw / RUN_MANIFEST, stone, {})
    return len(gone)


def _clean_cache(cache: Path, stone: Tombstone) -> int:
    """Delete the kept results of ingest and curate that name a forgotten recording."""
    count = 0
    for entry in (entry for verb in ("ingest", "curate") for entry in sorted((cache / "steps" / verb).glob("*"))):
        if entry.is_dir() and _mentions(entry, stone):
            shutil.rmtree(entry)
            count += 1
    return count


def _mentions(entry: Path, stone: Tombstone) -> bool:
    for name in (RUN_MANIFEST, "sources.jsonl", "dataset.json"):
        for path in entry.glob(f"*/{name}"):
            if any(digest in path.read_text() for digest in stone.sources):
                return True
    unfinished = entry.glob(".*.partial/parts/*")
    return any(stone.covers("", part.name) for part in unfinished)


def prove(folders: list[Path], stone: Tombstone) -> int:
    """Search folders for the removed digests.

    Returns:
        Files looked at, shard members and embedded pictures counted.

    Raises:
        ValueError: something was found; the first places are named.
    """
    wanted = {*stone.items, *stone.sources}
    looked, found = holders(folders, wanted)
    if found:
        raise ValueError(f"{len(found)} removed things are still there: {', '.join(found[:5])}; run the command again")
    return looked


def models_of(digests: tuple[str, ...], runs: Path | None) -> Iterator[str]:
    """Model folders under `runs` that were trained on one of some dataset versions."""
    for path in sorted(runs.rglob("provenance.json")) if runs is not None and runs.is_dir() else []:
        if read_json(path).get("dataset_digest") in digests:
            yield str(path.parent)


def tracked_models(digests: tuple[str, ...], tracking: str = "") -> Iterator[str]:
    """MLflow runs that were trained on one of some dataset versions; nothing where MLflow can't be reached."""
    from components.runtime.tracking import client, database_file, tracking_uri

    place = tracking_uri(tracking)
    file = database_file(place)
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
        log.warning("MLflow at %s cannot be asked (%s): models recorded there are not listed", place, error)
