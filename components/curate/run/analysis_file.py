"""The file of a source's analysis, and readers of the few fields by which sources are compared."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.labels.cameras import COMPARED_S, Recording
from components.curate.video.analysis import Analysis
from components.curate.video.duplicates import SourceFingerprint
from components.curate.video.faces import Track
from components.curate.video.probe import Probe
from components.dataset.sources import Source
from lpm_model.config import AUDIO_RATE, VIDEO_FPS

ANALYSIS_FILE = "analysis.npz"
"""Name of the file in a source's folder of partial results, and in the analysis cache."""
_ARRAYS = ("track", "speech", "loudness", "luminance", "change", "hashes")


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
    """Read an analysis that `save_analysis` wrote."""
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


def load_fingerprint(path: Path) -> SourceFingerprint:
    """Read only the fields by which duplicates are found."""
    with np.load(path, allow_pickle=False) as data:
        facts = json.loads(data["facts"].tobytes())
        return SourceFingerprint(
            source_id=facts["source"]["source_id"],
            shots=[(a, b) for a, b in facts["shots"]],
            hashes=data["hashes"],
            change=data["change"],
            loudness=data["loudness"],
        )


def load_recording(path: Path) -> Recording | None:
    """Read only the fields by which the two cameras of a conversation are found; None where a shot shows two people."""
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
