"""Finished work per source: kept in the working folder so that a killed run goes on where it stopped."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.labels.cameras import COMPARED_S, Recording
from components.curate.video.analysis import Analysis
from components.curate.video.duplicates import Print
from components.curate.video.faces import Track
from components.curate.video.probe import Probe
from components.dataset.sources import Source
from lpm_model.config import AUDIO_RATE, VIDEO_FPS
from lpm_model.files import read_json, write_json

LOOK, CLIPS = "look", "clips"
"""The stages kept per source."""
ANALYSIS = "look.npz"
"""File of what the first pass over a source found."""
PASSING = frozenset({"failed", "too_slow", "too_much_memory", "worker_died"})
"""Refusals that may not hold another time: no run takes one from an earlier run, the source is tried again."""
_ARRAYS = ("track", "speech", "loudness", "luminance", "change", "hashes")


def key_of(*values: Any) -> str:
    """Digest of plain values: a part is reused only under the same key."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def save_analysis(path: Path, analysis: Analysis) -> None:
    """Write an analysis as one .npz file (no pickles)."""
    arrays: dict[str, NDArray[Any]] = {name: getattr(analysis, name) for name in _ARRAYS}
    arrays |= {f"trace-{name}": values for name, values in analysis.traces.items()}
    arrays |= {f"person{i}": track.values for i, track in enumerate(analysis.tracks)}
    facts = {
        "source": dataclasses.asdict(analysis.source),
        "header": dataclasses.asdict(analysis.header),
        "frames": analysis.frames,
        "shots": analysis.shots,
        "transitions": analysis.transitions,
        "tracks": [[track.start, track.shot] for track in analysis.tracks],
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial.npz")
    np.savez(temporary, **arrays)  # type: ignore[arg-type]
    os.replace(temporary, path)


def load_analysis(path: Path) -> Analysis:
    """Read what `save_analysis` wrote."""
    with np.load(path, allow_pickle=False) as data:
        facts = json.loads(data["facts"].tobytes())
        tracks = [
            Track(start=start, shot=shot, values=data[f"person{i}"]) for i, (start, shot) in enumerate(facts["tracks"])
        ]
        return Analysis(
            source=Source(**facts["source"]),
            header=Probe(**facts["header"]),
            frames=facts["frames"],
            shots=[(a, b) for a, b in facts["shots"]],
            tracks=tracks,
            traces={name.removeprefix("trace-"): data[name] for name in data.files if name.startswith("trace-")},
            transitions=[(a, b, kind) for a, b, kind in facts["transitions"]],
            **{name: data[name] for name in _ARRAYS},
        )


def load_print(path: Path) -> Print:
    """The little of what `save_analysis` wrote that tells copies."""
    with np.load(path, allow_pickle=False) as data:
        facts = json.loads(data["facts"].tobytes())
        return Print(
            source_id=facts["source"]["source_id"],
            shots=[(a, b) for a, b in facts["shots"]],
            hashes=data["hashes"],
            change=data["change"],
            loudness=data["loudness"],
        )


def load_recording(path: Path) -> Recording | None:
    """The little of what `save_analysis` wrote that tells cameras; None where two people share a picture."""
    with np.load(path, allow_pickle=False) as data:
        facts = json.loads(data["facts"].tobytes())
        shots = [shot for _, shot in facts["tracks"]]
        if len(set(shots)) < len(shots):
            return None
        gap = np.full(facts["frames"], np.nan, np.float32)
        for number, (start, shot) in enumerate(facts["tracks"]):
            track = Track(start=start, shot=shot, values=data[f"person{number}"])
            gap[track.start : track.stop] = track.column("gap")
        return Recording(track=data["track"][: COMPARED_S * AUDIO_RATE], gap=gap[: COMPARED_S * VIDEO_FPS])


def finished(folder: Path, stage: str, key: str) -> dict[str, Any] | None:
    """The outcome of a stage that is done under this key, None where it has to be done (again)."""
    marker = folder / f"{stage}.json"
    if not marker.exists():
        return None
    kept: dict[str, Any] = read_json(marker)
    outcome: dict[str, Any] = kept["outcome"]
    return outcome if kept["key"] == key and outcome.get("reason") not in PASSING else None


def finish(folder: Path, stage: str, key: str, outcome: Mapping[str, Any]) -> None:
    """Mark a stage as done; written last, so that half-written work is never taken for finished."""
    write_json(folder / f"{stage}.json", {"key": key, "outcome": dict(outcome)})


def restart(folder: Path) -> Path:
    """An empty folder for a stage's files."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder
