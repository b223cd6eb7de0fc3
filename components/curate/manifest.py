"""The manifest's schema, in one place: one row a clip, every score beside every decision."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate import scorers
from lpm_model.config import STATES

IDLE, SPEAK, LISTEN, DISCARD = STATES.values()
STATE_NAMES = {code: name for name, code in STATES.items()}
"""Codes of the per-frame state track."""

SCORES = scorers.COLUMNS
"""Every quality score, in the order in which thresholds are tried; empty where a scorer is off or cannot tell."""

COLUMNS: dict[str, tuple[str, ...]] = {
    "sources": ("source_id", "source_sha256", "file", "origin", "licence", "consent_ref", "conversation_id", "camera"),
    "cut": ("clip_id", "person_id", "track", "shot", "start_frame", "frames", "seconds"),
    "states": ("states", "speak_ratio", "listen_ratio", "idle_ratio", "partner_source_id", "camera_offset_samples"),
    "tracks": ("speech_track", "mouth_track", "loudness_track"),
    "conversation": (
        "partner_person",
        "intervals",
        "source_offset_frames",
        "source_offset_confidence",
    ),
    "crops": ("crop_box", "face_box", "resampled"),
    "quality": (*SCORES, "kept", "reason", "reasons"),
    "audio": ("audio_start_sample", "audio_samples", "speak_from", "listen_from"),
    "captions": ("caption", "caption_fields"),
    "references": ("references",),
    "shards": ("shard",),
}
"""Columns by the stage that adds them; a stage may read all columns of the stages before it."""


def schema() -> Any:
    """The manifest's Arrow schema."""
    import pyarrow as pa

    box = pa.list_(pa.int32(), 4)
    special = {
        "track": pa.int32(),
        "shot": pa.int32(),
        "start_frame": pa.int64(),
        "frames": pa.int32(),
        "seconds": pa.float64(),
        "states": pa.list_(pa.list_(pa.int32(), 2)),
        "speak_ratio": pa.float64(),
        "listen_ratio": pa.float64(),
        "idle_ratio": pa.float64(),
        "camera_offset_samples": pa.int64(),
        "intervals": pa.list_(
            pa.struct([("start", pa.int32()), ("stop", pa.int32()), ("kind", pa.string()), ("who", pa.string())])
        ),
        "source_offset_frames": pa.int32(),
        "source_offset_confidence": pa.float64(),
        "crop_box": box,
        "face_box": box,
        "resampled": pa.bool_(),
        "kept": pa.bool_(),
        "reasons": pa.list_(pa.string()),
        "audio_start_sample": pa.int64(),
        "audio_samples": pa.int64(),
        "references": pa.list_(
            pa.struct(
                [
                    ("kind", pa.string()),
                    ("shows", pa.string()),
                    ("track", pa.int32()),
                    ("frame", pa.int64()),
                    ("seconds_away", pa.float64()),
                    ("copy_distance", pa.float64()),
                    ("identity_distance", pa.float64()),
                ]
            )
        ),
        **dict.fromkeys(COLUMNS["tracks"], pa.list_(pa.uint8())),
        **dict.fromkeys(SCORES, pa.float64()),
    }
    names = [name for columns in COLUMNS.values() for name in columns]
    return pa.schema([(name, special.get(name, pa.string())) for name in names])


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One line of raw/sources.jsonl."""

    source_id: str
    """Name of the source in the corpus."""
    file: str
    """Path below raw/."""
    sha256: str
    """Digest of the file."""
    bytes: int
    """Size of the file."""
    origin: str
    """performer, folder or s3."""
    licence: str
    """Licence from the sidecar."""
    consent_ref: str
    """Where the consent of the people shown is kept."""
    conversation_id: str | None = None
    """Conversation that several cameras filmed."""
    camera: str | None = None
    """a, b or two_shot."""
    person_hint: str | None = None
    """Who is seen, if the owner says."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write manifest rows as Parquet; the same rows give the same bytes.

    Raises:
        ValueError: a row lacks a column or has one that the schema does not know.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = set(schema().names)
    for row in rows:
        if set(row) != names:
            odd = sorted(set(row) ^ names)
            raise ValueError(f"manifest row {row.get('clip_id')} and the schema differ in {', '.join(odd)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read manifest rows.

    Raises:
        ValueError: the file is missing or follows another schema.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"{path} is missing: run `lpm curate` first")
    table = pq.read_table(path)
    if not table.schema.equals(schema()):
        raise ValueError(f"{path} follows another schema: curate the dataset again with this version")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def encode_states(states: Iterable[int]) -> list[list[int]]:
    """Run-length code of a state track: [[state, frames], ...]."""
    runs: list[list[int]] = []
    for state in states:
        if runs and runs[-1][0] == int(state):
            runs[-1][1] += 1
        else:
            runs.append([int(state), 1])
    return runs


def decode_states(runs: Iterable[Sequence[int]]) -> NDArray[np.uint8]:
    """A state track uint8 [frames] from its run-length code."""
    return np.concatenate([np.full(length, state, np.uint8) for state, length in runs] or [np.zeros(0, np.uint8)])
