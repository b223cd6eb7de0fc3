"""What is to be removed: the recordings that the user's word for a person or a file means."""

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from components.dataset.names import source_id_of, stem_of
from components.dataset.tombstones import plain
from lpm_model.digests import file_digest
from lpm_model.files import read_json

Kind = Literal["identity", "source"]
Rows = list[dict[str, Any]]
_PREFIX = 8
"""Digits of a digest that are enough to name a recording."""


@dataclass(kw_only=True, slots=True)
class Target:
    """What has to go."""

    sources: dict[str, str] = field(default_factory=dict)
    """Digest by source id."""
    names: set[str] = field(default_factory=set)
    """Of people and recordings, not to come back."""
    files: set[str] = field(default_factory=set)
    """Paths under which they were listed, or refused as copies."""
    notes: list[str] = field(default_factory=list)
    """What goes beyond the word, or is meant by it, in sentences for the user."""


@dataclass(frozen=True, slots=True)
class _Recording:
    sha256: str
    file: str


def listing(raw: Path | None) -> Rows:
    """Lines of a raw folder's sources.jsonl; none without a folder."""
    path = raw / "sources.jsonl" if raw is not None else None
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def refused(raw: Path | None) -> Rows:
    """Files that ingest left out, from a raw folder's ingest.json."""
    path = raw / "ingest.json" if raw is not None else None
    found: Rows = read_json(path)["rejected"] if path is not None and path.is_file() else []
    return found


def find(rows: Rows, kind: Kind, name: str, raw: Path | None) -> Target:
    """The recordings that a name means.

    Args:
        rows: the manifest.
        kind: what `name` names.
        name: a person_id of the manifest or a person_hint of `raw`, in any spelling; or a recording's source id, file
            name (its own, with the folders below its source, or that in the raw folder), SHA-256 (its first 8 digits
            do), or the path of a file with its bytes.
        raw: folder that the dataset was curated from; None = not looked at.

    Raises:
        ValueError: no recording (the nearest known names are listed) or several different ones.
    """
    known = _recordings(rows, raw)
    target = _of_person(rows, name, raw) if kind == "identity" else _of_file(known, name, raw)
    for one in target.sources:
        target.sources[one] = known[one].sha256
        target.files.add(known[one].file)
        target.names.add(one)
    target.files.update(item["file"] for item in refused(raw) if item.get("same_as") in target.sources)
    return target


def meant(rows: Rows, name: str, raw: Path | None) -> dict[str, str]:
    """Digest by source id of the recordings that a name of a file means; none where it means none.

    Raises:
        ValueError: it may mean several different ones.
    """
    known = _recordings(rows, raw)
    return {one: known[one].sha256 for one in _matches(known, name)[0]}


def _recordings(rows: Rows, raw: Path | None) -> dict[str, _Recording]:
    known = {row["source_id"]: _Recording(row["source_sha256"], row["file"]) for row in rows}
    for line in listing(raw):
        known.setdefault(line["source_id"], _Recording(line["sha256"], line["file"]))
    return known


def _of_person(rows: Rows, name: str, raw: Path | None) -> Target:
    """The recordings that show a person, or that the owner says to show them; each goes whole."""
    clips: dict[str, Counter[str]] = {}
    for row in rows:
        clips.setdefault(row["source_id"], Counter())[row["person_id"]] += 1
    hints = {line["source_id"]: line["person_hint"] for line in listing(raw) if line.get("person_hint")}
    files = {row["source_id"]: row["file"] for row in rows}
    target = Target(names={name})
    for one in sorted({*clips, *hints}):
        called = [who for who in clips.get(one, ()) if plain(who) == plain(name)]
        hinted = one in hints and plain(hints[one]) == plain(name)
        if not called and not hinted:
            continue
        target.sources[one] = ""
        others = {who: count for who, count in clips.get(one, Counter()).items() if who not in called}
        if others:
            why = "it shows them" if called else f"its person_hint is {hints[one]}"
            target.notes.append(
                f"all of {Path(files[one]).name} goes, since {why}: with it "
                f"{_clips(sum(others.values()))} of {', '.join(sorted(others))}"
            )
    if not target.sources:
        people = sorted({who for found in clips.values() for who in found} | set(hints.values()))
        unseen = "; person_hints are not looked at without the raw folder" if raw is None else ""
        raise ValueError(f"no identity {name!r} in this dataset: the nearest are {_nearest(name, people)}{unseen}")
    return target


def _clips(count: int) -> str:
    return f"{count} clip{'' if count == 1 else 's'}"


def _of_file(known: dict[str, _Recording], name: str, raw: Path | None) -> Target:
    found, guessed = _matches(known, name)
    same_name = [item for item in refused(raw) if PurePosixPath(item["file"]).name == PurePosixPath(name).name]
    out = [item for item in same_name if item["file"] == name] or ([] if found else same_name)
    if out and (guessed or not found):
        other = f"; {' and '.join(found)} came of another file of that name" if found else ""
        raise ValueError(f"no source {name!r} in this dataset: {_left_out(out[0])}{other}")
    if not found:
        ending = [one for one in known if one.rpartition("-")[0].endswith(f"_{stem_of(name)}")]
        names = [*known, *(Path(one.file).name for one in known.values())]
        near = ", ".join(ending) or _nearest(name, names)
        raise ValueError(f"no source {name!r} in this dataset: the nearest are {near}")
    target = Target(sources=dict.fromkeys(found, ""))
    target.notes += [
        f"{name} is {known[one].file}"
        for one in found
        if name not in (one, known[one].file, Path(known[one].file).name)
    ]
    return target


def _left_out(item: dict[str, Any]) -> str:
    same = item.get("same_as")
    return f"ingest left {item['file']} out ({item['reason']})" + (f": give {same}" if same else "")


def _matches(known: dict[str, _Recording], name: str) -> tuple[list[str], bool]:
    """The recordings that are called so now, else those with the bytes of a file there, else those once called so.

    Returns:
        Their source ids, and whether they are of the last kind, which other files' names may give as well.

    Raises:
        ValueError: they are several different ones.
    """
    found = [one for one, of in known.items() if _stored(name, one, of)]
    path = Path(name).expanduser()
    if not found and path.is_file():
        digest = file_digest(path)
        found = [one for one, of in known.items() if of.sha256 == digest]
    guessed = not found
    if guessed:
        found = [one for one, of in known.items() if _own(name, one, of)]
    if len({known[one].sha256 or one for one in found}) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(sorted(found))}: give one of these")
    return sorted(found), guessed


def _stored(name: str, source_id: str, of: _Recording) -> bool:
    path = Path(of.file)
    by_digest = re.fullmatch(r"[0-9a-f]+", name) is not None and len(name) >= _PREFIX and of.sha256.startswith(name)
    return name in (source_id, of.file, path.name, path.stem) or by_digest


def _own(name: str, source_id: str, of: _Recording) -> bool:
    """Whether ingest called a file of this name, with or without its ending, so."""
    ending = PurePosixPath(of.file).suffix
    whole = name if name.lower().endswith(ending.lower()) else name + ending
    return bool(of.sha256) and source_id == source_id_of(whole, of.sha256)


def _nearest(name: str, names: list[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, names, n=5, cutoff=0.0)) or "none"
