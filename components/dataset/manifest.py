"""The manifest's schema: one row per clip, with all scores and decisions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    "quality": ("kept", "reason", "reasons"),
    "audio": ("audio_start_sample", "audio_samples", "speak_from", "listen_from"),
    "captions": ("caption", "caption_fields"),
    "references": ("references",),
    "shards": ("shard",),
}
"""Columns by the stage that adds them, without scores; a stage may read the columns of all earlier stages."""


def score_columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a row's score columns, in the order in which thresholds are applied."""
    fixed = {name for columns in COLUMNS.values() for name in columns}
    return tuple(name for name in row if name not in fixed)


def schema(scores: Sequence[str]) -> Any:
    """Return the manifest's Arrow schema with a column for each score."""
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
        **dict.fromkeys(scores, pa.float64()),
    }
    names = [
        name for stage, columns in COLUMNS.items() for name in ((*scores, *columns) if stage == "quality" else columns)
    ]
    return pa.schema([(name, special.get(name, pa.string())) for name in names])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> None:
    """Write manifest rows as Parquet; equal rows give equal bytes.

    Args:
        path: file to write.
        rows: the rows.
        scores: score columns, in the order in which thresholds are applied.

    Raises:
        ValueError: a row lacks a column of the schema or has an unknown one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = schema(scores)
    names = set(arrow.names)
    for row in rows:
        if set(row) != names:
            differences = ", ".join(sorted(set(row) ^ names))
            raise ValueError(f"manifest row {row.get('clip_id')} and the schema differ in {differences}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=arrow), path, compression="zstd")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read manifest rows.

    Raises:
        ValueError: the file is missing or has another schema.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"{path} is missing: run `lpm curate` first")
    table = pq.read_table(path)
    if not table.schema.equals(schema(score_columns(dict.fromkeys(table.column_names)))):
        raise ValueError(f"{path} has another schema: curate the dataset again with this version")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
