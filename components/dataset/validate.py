"""Validate a dataset with Great Expectations over manifest, shards and files; Data Docs as static HTML."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.dataset.manifest import schema, score_columns
from components.dataset.shards import MEMBERS, load_array, read_shard
from lpm_model.config import FRAMES_PER_LATENT, REFERENCE_KINDS
from lpm_model.digests import file_digest
from lpm_model.files import read_json

_RATIOS = (
    "speak_ratio",
    "listen_ratio",
    "idle_ratio",
    "speech_ratio",
    "confidence",
    "face_in_frame_ratio",
    "one_face_ratio",
    "letterbox_ratio",
)


def validate(rows: Sequence[Mapping[str, Any]], folder: Path, clip_frames: tuple[int, int]) -> None:
    """Validate manifest, shards and files of a dataset, and write the Data Docs to its `validation/`.

    Args:
        rows: manifest rows.
        folder: the dataset, complete with dataset.json.
        clip_frames: smallest and largest number of frames of a clip.

    Raises:
        ValueError: expectations failed; names and columns are listed.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    for name in (
        "great_expectations",
        "great_expectations.data_context.types.base",
    ):  # the second has its own log level
        logging.getLogger(name).setLevel(logging.WARNING)
    docs = folder / "validation"
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    context.add_data_docs_site(
        "curation", {"class_name": "SiteBuilder", "store_backend": backend, "site_index_builder": _INDEX}
    )
    if docs.exists():
        shutil.rmtree(docs)
    failed = []
    members = list(member_facts(folder, rows))
    for name, frame, expectations in (
        ("manifest", _manifest_frame(rows), _expectations(clip_frames, score_columns(rows[0]))),
        ("shards", _frame(members, _MEMBER_COLUMNS), _all_true(_MEMBER_COLUMNS, "clip_id")),
        ("files", _frame(list(file_facts(folder)), _FILE_COLUMNS), _all_true(_FILE_COLUMNS, "file")),
    ):
        failed += [f"{name}: {what}" for what in _check(context, name, frame, expectations)]
    _make_static(docs)
    if failed:
        raise ValueError(f"the dataset fails its validation: {'; '.join(failed)}")


def _check(context: Any, name: str, frame: Any, expectations: list[Any]) -> list[str]:
    """Run one suite over one table; return the failed expectations."""
    import great_expectations as gx

    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    docs_action = gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["curation"])
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name=name, validation_definitions=[definition], actions=[docs_action])
    )
    result = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=_run())
    return [
        _describe(item.expectation_config.type, item.expectation_config.kwargs)
        for run in result.run_results.values()
        for item in run.results
        if not item.success
    ]


def _describe(kind: str, wanted: Mapping[str, Any]) -> str:
    """Describe an expectation by its name and values, such as `row count to be between, min_value 1`."""
    text = kind.removeprefix("expect_").removeprefix("table_").replace("_", " ")
    values = [f"{name} {wanted[name]}" for name in ("column", "min_value", "max_value") if wanted.get(name) is not None]
    return ", ".join([text, *values])


_MEMBER_COLUMNS = ("clip_id", "in_manifest", "in_its_shard", "complete", "latents", "references", "audio", "metadata")
_FILE_COLUMNS = ("file", "recorded", "unchanged")


def member_facts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per clip of the shards: whether each member matches the manifest and every latent is finite."""
    kept = {row["clip_id"]: row for row in rows if row["kept"]}
    seen: set[str] = set()
    for path in sorted((folder / "shards").glob("*.tar")):
        for clip_id, parts in read_shard(path):
            seen.add(clip_id)
            row = kept.get(clip_id)
            complete = set(parts) == {"json", *(f"{name}.npy" for name in MEMBERS)}
            found = {
                "clip_id": clip_id,
                "in_manifest": row is not None,
                "in_its_shard": row is not None and row["shard"] == path.name,
                "complete": complete,
            }
            yield {
                **dict.fromkeys(_MEMBER_COLUMNS, False),
                **found,
                **(_check_members(row, parts) if row and complete else {}),
            }
    for clip_id in sorted(set(kept) - seen):
        yield {**dict.fromkeys(_MEMBER_COLUMNS, False), "clip_id": clip_id, "in_manifest": True}


def _check_members(row: Mapping[str, Any], parts: Mapping[str, bytes]) -> dict[str, bool]:
    latents, references, speak, listen = (load_array(parts[f"{name}.npy"]) for name in MEMBERS)
    metadata = json.loads(parts["json"])
    kinds = [reference["kind"] for reference in row["references"]]
    steps = 1 + (row["frames"] - 1) // FRAMES_PER_LATENT
    tracks_fit = {track.shape == (row["audio_samples"],) and track.dtype == np.int16 for track in (speak, listen)}
    return {
        "latents": latents.dtype == np.float16
        and latents.ndim == 4
        and latents.shape[1] == steps
        and bool(np.isfinite(latents).all()),
        "references": references.shape == (len(kinds), latents.shape[0], *latents.shape[2:])
        and bool(np.isfinite(references).all()),
        "audio": tracks_fit == {True},
        "metadata": metadata["reference_kinds"] == kinds
        and set(kinds) <= set(REFERENCE_KINDS)
        and all(metadata[name] == row[name] for name in ("frames", "caption", "states", "person_id", "source_id")),
    }


def file_facts(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row per file covered by the dataset's digest: whether it is listed, and unchanged."""
    recorded = read_json(folder / "dataset.json").get("files", {})
    present = [folder / "manifest.parquet", *(folder / "shards").glob("*.tar")]
    names = {path.relative_to(folder).as_posix(): path for path in present if path.is_file()}
    for name in sorted({*names, *recorded}):
        known = recorded.get(name)
        yield {
            "file": name,
            "recorded": known is not None,
            "unchanged": name in names and file_digest(names[name]) == known,
        }


def _frame(values: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
    import pandas as pd

    return pd.DataFrame(values, columns=list(columns))


def _manifest_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return manifest rows with the derived columns that expectations use."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=schema(score_columns(rows[0])).names)
    frame["frames_mod_4"] = frame["frames"] % 4
    frame["caption_length"] = frame["caption"].str.len()
    frame["audio_surplus"] = frame["audio_samples"] - (frame["frames"] - 1) * 1000
    return frame


def _all_true(columns: tuple[str, ...], key: str) -> list[Any]:
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeUnique(column=key),
        *(gxe.ExpectColumnValuesToBeInSet(column=name, value_set=[True]) for name in columns if name != key),
    ]


def _run() -> Any:
    """Return a fixed name and time, so that the same manifest gives the same pages."""
    import datetime

    from great_expectations.core.run_identifier import RunIdentifier

    return RunIdentifier(run_name="curate", run_time=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))


def _make_static(docs: Path) -> None:
    """Make the pages reproducible and self-contained: no random ids, no times, nothing fetched."""
    for page in sorted(docs.rglob("*.html")):
        text = page.read_text()
        names = list(dict.fromkeys(_UUID.findall(text)))
        for number, name in enumerate(names):
            text = text.replace(name, f"{number:08d}")
        image = os.path.relpath(docs / "static" / "images" / "logo-long.png", page.parent)
        text = _STAMP.sub("2000-01-01", _PIXEL.sub(image, text))
        page.write_text(_REMOTE.sub("", text).replace("</head>", f"{_STYLE}</head>", 1))
    # The original index is a table that remote scripts would fill.
    pages = [page.relative_to(docs).as_posix() for page in sorted(docs.glob("validations/**/*.html"), reverse=True)]
    links = "".join(f'<li><a href="{page}">{page.split("/")[1]}</a></li>' for page in pages)
    title = "Validation of manifest, shards and files"
    (docs / "index.html").write_text(f"<!doctype html><title>{title}</title>{_STYLE}<h1>{title}</h1><ul>{links}</ul>\n")


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_STAMP = re.compile(r"(?!20000101T)\d{8}T\d{6}\.\d+Z")
_PIXEL = re.compile(r"https://great-expectations-web-assets[^\"' ]*")
_REMOTE = re.compile(r"<script\b.*?</script>|<link\b[^>]*https?://[^>]*>", re.DOTALL)
_STYLE = (
    "<style>body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.3rem .6rem;border-bottom:1px solid #e3e5e8;text-align:left}"
    "nav,.navbar,button,.modal,#ge-cta-footer{display:none}</style>"
)
_INDEX = {"class_name": "DefaultSiteIndexBuilder"}


def _expectations(clip_frames: tuple[int, int], scores: Sequence[str]) -> list[Any]:
    """Return the expectations on every manifest."""
    import great_expectations.expectations as gxe

    low, high = clip_frames
    found: list[Any] = [
        gxe.ExpectTableRowCountToBeBetween(min_value=1),
        gxe.ExpectColumnValuesToBeUnique(column="clip_id"),
        gxe.ExpectColumnValuesToBeBetween(column="frames", min_value=low, max_value=high),
        gxe.ExpectColumnValuesToBeInSet(column="frames_mod_4", value_set=[1]),
        gxe.ExpectColumnValuesToBeInSet(column="audio_surplus", value_set=[0]),
        gxe.ExpectColumnValuesToBeBetween(column="caption_length", min_value=10, max_value=400),
        gxe.ExpectColumnValuesToBeInSet(column="kept", value_set=[True, False]),
        gxe.ExpectColumnValuesToBeBetween(column="start_frame", min_value=0),
    ]
    nullable = {"conversation_id", "camera", "partner_source_id", *scores}
    required = [name for name in schema(scores).names if name not in nullable]
    found += [gxe.ExpectColumnValuesToNotBeNull(column=name) for name in required]
    found += [gxe.ExpectColumnValuesToBeBetween(column=name, min_value=0, max_value=1) for name in _RATIOS]
    found += [gxe.ExpectColumnToExist(column=name) for name in scores]
    return found
