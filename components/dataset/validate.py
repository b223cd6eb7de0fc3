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
    for name, frame, expectations in (
        ("manifest", _manifest_frame(rows), _manifest_expectations(clip_frames, score_columns(rows[0]))),
        ("shards", _data_frame(list(clip_facts(folder, rows)), _CLIP_COLUMNS), _clip_expectations()),
        ("files", _data_frame(list(file_facts(folder)), _FILE_COLUMNS), _file_expectations()),
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
    result = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=_fixed_run())
    return [
        _describe(item.expectation_config.type, item.expectation_config.kwargs)
        for run in result.run_results.values()
        for item in run.results
        if not item.success
    ]


def _describe(kind: str, wanted: Mapping[str, Any]) -> str:
    """Describe an expectation by its name and values, such as `row count to be between, min_value 1`."""
    text = kind.removeprefix("expect_").removeprefix("table_").replace("_", " ")
    names = ("column", "column_A", "column_B", "min_value", "max_value")
    values = [f"{name} {wanted[name]}" for name in names if wanted.get(name) is not None]
    return ", ".join([text, *values])


EQUAL_COLUMNS = (
    ("shard", "expected_shard"),
    ("latent_frames", "expected_latent_frames"),
    ("references", "expected_references"),
    ("speak_samples", "expected_samples"),
    ("listen_samples", "expected_samples"),
)
"""Pairs of columns of the clip table that must be equal: value in the shard, value in the manifest."""
_CLIP_COLUMNS = (
    "clip_id",
    *dict.fromkeys(name for pair in EQUAL_COLUMNS for name in pair),
    "members",
    "latent_dtype",
    "nonfinite_values",
    "metadata_differences",
)
_FILE_COLUMNS = ("file", "sha256", "recorded_sha256")
_ALL_MEMBERS = " ".join(sorted(("json", *(f"{name}.npy" for name in MEMBERS))))


def clip_facts(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield one row per clip of the shards or of the manifest, with actual and expected values.

    Values that cannot be measured are None; lengths are -1 for arrays of another type or number of axes.
    """
    kept = {row["clip_id"]: row for row in rows if row["kept"]}
    found: set[str] = set()
    for path in sorted((folder / "shards").glob("*.tar")):
        for clip_id, parts in read_shard(path):
            found.add(clip_id)
            row, members = kept.get(clip_id), " ".join(sorted(parts))
            yield {
                **dict.fromkeys(_CLIP_COLUMNS),
                "clip_id": clip_id,
                "shard": path.name,
                "expected_shard": row["shard"] if row else None,
                "members": members,
                **(_member_facts(row, parts) if row and members == _ALL_MEMBERS else {}),
            }
    for clip_id in sorted(set(kept) - found):
        yield {**dict.fromkeys(_CLIP_COLUMNS), "clip_id": clip_id, "expected_shard": kept[clip_id]["shard"]}


def _member_facts(row: Mapping[str, Any], parts: Mapping[str, bytes]) -> dict[str, Any]:
    latents, references, speak, listen = (load_array(parts[f"{name}.npy"]) for name in MEMBERS)
    metadata = json.loads(parts["json"])
    kinds = [reference["kind"] for reference in row["references"]]
    expected = {name: row[name] for name in ("frames", "caption", "states", "person_id", "source_id")}
    expected["reference_kinds"] = [kind for kind in kinds if kind in REFERENCE_KINDS]
    image_shape = (latents.shape[0], *latents.shape[2:])
    return {
        "latent_dtype": latents.dtype.name,
        "latent_frames": latents.shape[1] if latents.ndim == 4 else -1,
        "expected_latent_frames": 1 + (row["frames"] - 1) // FRAMES_PER_LATENT,
        "nonfinite_values": sum(int(np.sum(~np.isfinite(array))) for array in (latents, references)),
        "references": len(references) if references.shape[1:] == image_shape else -1,
        "expected_references": len(kinds),
        "speak_samples": len(speak) if speak.ndim == 1 and speak.dtype == np.int16 else -1,
        "listen_samples": len(listen) if listen.ndim == 1 and listen.dtype == np.int16 else -1,
        "expected_samples": row["audio_samples"],
        "metadata_differences": ", ".join(name for name, value in expected.items() if metadata.get(name) != value),
    }


def file_facts(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row per file covered by the dataset's digest: its digest now, and as recorded in dataset.json."""
    recorded = read_json(folder / "dataset.json").get("files", {})
    present = [folder / "manifest.parquet", *(folder / "shards").glob("*.tar")]
    files = {path.relative_to(folder).as_posix(): path for path in present if path.is_file()}
    for name in sorted({*files, *recorded}):
        yield {
            "file": name,
            "sha256": file_digest(files[name]) if name in files else None,
            "recorded_sha256": recorded.get(name),
        }


def _data_frame(values: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
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


def _clip_expectations() -> list[Any]:
    """Return the expectations on the clips of the shards."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeUnique(column="clip_id"),
        gxe.ExpectColumnValuesToNotBeNull(column="shard"),
        gxe.ExpectColumnValuesToNotBeNull(column="expected_shard"),
        gxe.ExpectColumnValuesToBeInSet(column="members", value_set=[_ALL_MEMBERS]),
        gxe.ExpectColumnValuesToBeInSet(column="latent_dtype", value_set=["float16"]),
        gxe.ExpectColumnValuesToBeBetween(column="nonfinite_values", min_value=0, max_value=0),
        *(
            gxe.ExpectColumnPairValuesToBeEqual(column_A=one, column_B=other, ignore_row_if="either_value_is_missing")
            for one, other in EQUAL_COLUMNS
        ),
        gxe.ExpectColumnValuesToBeInSet(column="metadata_differences", value_set=[""]),
    ]


def _file_expectations() -> list[Any]:
    """Return the expectations on the files that the dataset's digest covers."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeUnique(column="file"),
        gxe.ExpectColumnValuesToNotBeNull(column="sha256"),
        gxe.ExpectColumnValuesToNotBeNull(column="recorded_sha256"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="sha256", column_B="recorded_sha256", ignore_row_if="either_value_is_missing"
        ),
    ]


def _fixed_run() -> Any:
    """Return a run with fixed name and time: the same manifest gives the same pages."""
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


def _manifest_expectations(clip_frames: tuple[int, int], scores: Sequence[str]) -> list[Any]:
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
