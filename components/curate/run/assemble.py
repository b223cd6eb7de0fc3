"""Assemble the clips of all sources into one dataset: people's names, shards, previews and the manifest."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from components.curate.clips.store import read_members
from components.curate.config import CurationConfig
from components.curate.run import partial_results
from components.curate.run.clip_pass import PEOPLE_FILE, ROWS_FILE
from components.curate.run.job import Run
from components.curate.scorers import COLUMNS
from components.curate.video.identity import Person, apply_hints, name_people
from components.dataset.manifest import read_rows, write_rows
from components.dataset.shards import write_shards
from components.dataset.sources import Source
from components.dataset.tombstones import TOMBSTONES, Tombstones

Rows = list[dict[str, Any]]


def assemble(run: Run, sources: list[Source], tombstones: Tombstones) -> Rows:
    """Write manifest, shards, previews and tombstones of the sources' clips; return the manifest's rows by clip id."""
    rows, folders = _read_clips(run, sources)
    _name_people(rows, {source.source_id: source.person_hint for source in sources}, folders, run.config)
    rows = sorted((r for r in rows if not tombstones.find_match("", r["person_id"])), key=lambda row: row["clip_id"])
    shards = _write_shards(run, rows, folders)
    previews = partial_results.empty_folder(run.folder / "previews")
    for row in rows:
        row["shard"] = shards.get(row["clip_id"], "")
        name = f"{row['clip_id']}.jpg"
        shutil.copyfile(folders[row["clip_id"]] / name, previews / name)
    write_rows(run.folder / "manifest.parquet", rows, COLUMNS)
    if tombstones.all:
        tombstones.write(run.folder / TOMBSTONES)
    return rows


def _read_clips(run: Run, sources: list[Source]) -> tuple[Rows, dict[str, Path]]:
    """Return the manifest rows of all sources, and the folder of each clip's files by clip id."""
    rows: Rows = []
    folders: dict[str, Path] = {}
    for source in sources:
        folder = run.job(source).folder / partial_results.CLIPS
        found = read_rows(folder / ROWS_FILE)
        folders |= {row["clip_id"]: folder for row in found}
        rows += found
    return rows, folders


def _name_people(rows: Rows, hints: dict[str, str | None], folders: dict[str, Path], config: CurationConfig) -> None:
    """Assign one name per person across cuts and sources; rendered people are matched only with each other."""
    people: dict[tuple[str, int], Person] = {}
    by_limit: dict[float, list[Person]] = {}
    for row in rows:
        key = (row["source_id"], row["track"])
        if key not in people:
            with np.load(folders[row["clip_id"]] / PEOPLE_FILE, allow_pickle=False) as data:
                embedding, span = data["embeddings"][row["track"]], data["spans"][row["track"]]
            hint = hints[row["source_id"]] if row["person_id"] == hints[row["source_id"]] else None
            people[key] = Person(
                key=key, name=row["person_id"], hint=hint, span=(int(span[0]), int(span[1])), embedding=embedding
            )
            by_limit.setdefault(config.identity.limit(row["origin"]), []).append(people[key])
    names = {key: name for limit, group in by_limit.items() for key, name in name_people(group, limit).items()}
    names = apply_hints(names, hints)
    renamed = {people[key].name: name for key, name in names.items()}
    for row in rows:
        row["person_id"] = names[row["source_id"], row["track"]]
        row["partner_person"] = renamed.get(row["partner_person"], row["partner_person"])


def _write_shards(run: Run, rows: Rows, folders: dict[str, Path]) -> dict[str, str]:
    """Write the kept clips in order of their ids; return the shard of each by clip id."""
    folder = partial_results.empty_folder(run.folder / "shards")
    kept = [row for row in rows if row["kept"]]
    clips = ((row["clip_id"], _members(folders[row["clip_id"]], row)) for row in kept)
    tracked = run.progress.track(clips, "writing shards", total=len(kept)) if kept else clips
    return write_shards(folder, tracked, run.config.clips_per_shard)


def _members(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Return a clip's shard members, with the dataset-wide name of its person."""
    members = read_members(folder, row["clip_id"])
    return {**members, "json": {**members["json"], "person_id": row["person_id"]}}
