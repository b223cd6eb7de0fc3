"""Resolve the name of a person or a file to the recordings to erase."""

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from components.dataset.names import source_id_of, stem_of
from components.dataset.tombstones import normalize_name
from lpm_model.digests import file_digest
from lpm_model.files import read_json

TargetKind = Literal["identity", "source"]
Rows = list[dict[str, Any]]
_PREFIX = 8
"""Smallest number of digits that identify a recording by its digest."""


@dataclass(kw_only=True, slots=True)
class Target:
    """The recordings and names to erase."""

    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 by source id."""
    names: set[str] = field(default_factory=set)
    """Names of people and recordings that must not return."""
    files: set[str] = field(default_factory=set)
    """Paths under which the recordings were listed, or rejected as copies."""
    notes: list[str] = field(default_factory=list)
    """How the name was resolved and which other clips are affected, in sentences for the user."""


@dataclass(frozen=True, slots=True)
class _Recording:
    sha256: str
    file: str


def raw_sources(raw: Path | None) -> Rows:
    """Return the lines of a raw folder's sources.jsonl; none without a folder."""
    path = raw / "sources.jsonl" if raw is not None else None
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def ingest_rejections(raw: Path | None) -> Rows:
    """Return the files that ingest rejected, from a raw folder's ingest.json."""
    path = raw / "ingest.json" if raw is not None else None
    found: Rows = read_json(path)["rejected"] if path is not None and path.is_file() else []
    return found


def resolve(rows: Rows, kind: TargetKind, name: str, raw: Path | None) -> Target:
    """Resolve a name to the recordings to erase.

    Args:
        rows: the manifest.
        kind: whether `name` is a person or a recording.
        name: a person_id of the manifest or a person_hint of `raw`, in any case and spacing; or a recording's source
            id, file name (the original one with the folders below its source, or that in the raw folder), SHA-256
            (the first 8 digits suffice), or the path of a file with the same bytes.
        raw: folder that the dataset was curated from; None = not searched.

    Raises:
        ValueError: no recording matches (the nearest known names are listed), or several different ones.
    """
    known = _recordings(rows, raw)
    target = _of_person(rows, name, raw) if kind == "identity" else _of_file(known, name, raw)
    for one in target.sources:
        target.sources[one] = known[one].sha256
        target.files.add(known[one].file)
        target.names.add(one)
    target.files.update(item["file"] for item in ingest_rejections(raw) if item.get("same_as") in target.sources)
    return target


def matching_sources(rows: Rows, name: str, raw: Path | None) -> dict[str, str]:
    """Return the SHA-256 by source id of the recordings that a file name matches.

    Raises:
        ValueError: it matches several different ones.
    """
    known = _recordings(rows, raw)
    return {one: known[one].sha256 for one in _matches(known, name)[0]}


def _recordings(rows: Rows, raw: Path | None) -> dict[str, _Recording]:
    known = {row["source_id"]: _Recording(row["source_sha256"], row["file"]) for row in rows}
    for line in raw_sources(raw):
        known.setdefault(line["source_id"], _Recording(line["sha256"], line["file"]))
    return known


def _of_person(rows: Rows, name: str, raw: Path | None) -> Target:
    """Resolve a person to the recordings that show them or whose person_hint names them; each is erased as a whole."""
    clips: dict[str, Counter[str]] = {}
    for row in rows:
        clips.setdefault(row["source_id"], Counter())[row["person_id"]] += 1
    hints = {line["source_id"]: line["person_hint"] for line in raw_sources(raw) if line.get("person_hint")}
    files = {row["source_id"]: row["file"] for row in rows}
    target = Target(names={name})
    for one in sorted({*clips, *hints}):
        matches = [who for who in clips.get(one, ()) if normalize_name(who) == normalize_name(name)]
        hinted = one in hints and normalize_name(hints[one]) == normalize_name(name)
        if not matches and not hinted:
            continue
        target.sources[one] = ""
        others = {who: count for who, count in clips.get(one, Counter()).items() if who not in matches}
        if others:
            reason = "shows them" if matches else f"has the person_hint {hints[one]}"
            target.notes.append(
                f"{Path(files[one]).name} {reason} and is erased as a whole, including "
                f"{_clips(sum(others.values()))} of {', '.join(sorted(others))}"
            )
    if not target.sources:
        people = sorted({who for found in clips.values() for who in found} | set(hints.values()))
        hint = "; person_hints cannot be searched without the raw folder" if raw is None else ""
        raise ValueError(f"no identity {name!r} in this dataset: the nearest names are {_nearest(name, people)}{hint}")
    return target


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"


def _of_file(known: dict[str, _Recording], name: str, raw: Path | None) -> Target:
    found, inferred = _matches(known, name)
    same_name = [
        item for item in ingest_rejections(raw) if PurePosixPath(item["file"]).name == PurePosixPath(name).name
    ]
    rejected = [item for item in same_name if item["file"] == name] or ([] if found else same_name)
    if rejected and (inferred or not found):
        other = f"; {' and '.join(found)} came from another file with that name" if found else ""
        raise ValueError(f"no source {name!r} in this dataset: {_rejection(rejected[0])}{other}")
    if not found:
        ending = [one for one in known if one.rpartition("-")[0].endswith(f"_{stem_of(name)}")]
        names = [*known, *(Path(one.file).name for one in known.values())]
        near = ", ".join(ending) or _nearest(name, names)
        raise ValueError(f"no source {name!r} in this dataset: the nearest names are {near}")
    target = Target(sources=dict.fromkeys(found, ""))
    target.notes += [
        f"{name} is {known[one].file}"
        for one in found
        if name not in (one, known[one].file, Path(known[one].file).name)
    ]
    return target


def _rejection(item: dict[str, Any]) -> str:
    same = item.get("same_as")
    return f"ingest rejected {item['file']} ({item['reason']})" + (f": give {same}" if same else "")


def _matches(known: dict[str, _Recording], name: str) -> tuple[list[str], bool]:
    """Find recordings by their current name, else by the bytes of an existing file, else by their original name.

    Returns:
        Source ids, and whether they were inferred from the original name, which other files may share.

    Raises:
        ValueError: several different recordings match.
    """
    found = [one for one, of in known.items() if _has_current_name(name, one, of)]
    path = Path(name).expanduser()
    if not found and path.is_file():
        digest = file_digest(path)
        found = [one for one, of in known.items() if of.sha256 == digest]
    inferred = not found
    if inferred:
        found = [one for one, of in known.items() if _has_original_name(name, one, of)]
    if len({known[one].sha256 or one for one in found}) > 1:
        raise ValueError(f"{name!r} is ambiguous: give {' or '.join(sorted(found))}")
    return sorted(found), inferred


def _has_current_name(name: str, source_id: str, of: _Recording) -> bool:
    path = Path(of.file)
    by_digest = re.fullmatch(r"[0-9a-f]+", name) is not None and len(name) >= _PREFIX and of.sha256.startswith(name)
    return name in (source_id, of.file, path.name, path.stem) or by_digest


def _has_original_name(name: str, source_id: str, of: _Recording) -> bool:
    """Return whether ingest derived the source id from a file of this name, with or without its extension."""
    extension = PurePosixPath(of.file).suffix
    file = name if name.lower().endswith(extension.lower()) else name + extension
    return bool(of.sha256) and source_id == source_id_of(file, of.sha256)


def _nearest(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, n=5, cutoff=0.0)) or "none"
