"""The data gate: a Great Expectations checkpoint over the manifest, with its Data Docs as static HTML."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from components.curate.config import CurationConfig
from components.curate.manifest import SCORES, schema

_SHARES = (
    "speak_ratio",
    "listen_ratio",
    "idle_ratio",
    "speech_ratio",
    "confidence",
    "face_in_frame_ratio",
    "one_face_ratio",
    "letterbox_ratio",
)


def validate(rows: list[dict[str, Any]], config: CurationConfig, docs: Path) -> None:
    """Check the manifest and write the Data Docs.

    Args:
        rows: manifest rows.
        config: gives the bounds.
        docs: folder for the static pages (index.html).

    Raises:
        ValueError: expectations that do not hold, by name and column.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import pandas as pd

    frame = pd.DataFrame(rows, columns=schema().names)
    frame["frames_mod_4"] = frame["frames"] % 4
    frame["caption_length"] = frame["caption"].str.len()
    frame["audio_surplus"] = frame["audio_samples"] - (frame["frames"] - 1) * 1000
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    context.add_data_docs_site(
        "curation", {"class_name": "SiteBuilder", "store_backend": backend, "site_index_builder": _INDEX}
    )
    asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("clips")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name="manifest", expectations=_expectations(config)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name="manifest", data=batch, suite=suite))
    docs_action = gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["curation"])
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(name="manifest", validation_definitions=[definition], actions=[docs_action])
    )
    if docs.exists():
        shutil.rmtree(docs)
    result = checkpoint.run(batch_parameters={"dataframe": frame}, run_id=_run())
    _settle(docs)
    if not result.success:
        failed = [
            f"{item.expectation_config.type}({item.expectation_config.kwargs.get('column', '')})"
            for run in result.run_results.values()
            for item in run.results
            if not item.success
        ]
        raise ValueError(f"the manifest does not hold what it promises: {', '.join(failed)}")


def _run() -> Any:
    """A fixed name and time: the same manifest gives the same pages."""
    import datetime

    from great_expectations.core.run_identifier import RunIdentifier

    return RunIdentifier(run_name="curate", run_time=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))


def _settle(docs: Path) -> None:
    """Take out what changes from run to run and the counting pixel that the pages would fetch from the vendor."""
    for page in sorted(docs.rglob("*.html")):
        text = page.read_text()
        names = list(dict.fromkeys(_UUID.findall(text)))
        for number, name in enumerate(names):
            text = text.replace(name, f"{number:08d}")
        image = os.path.relpath(docs / "static" / "images" / "logo-long.png", page.parent)
        text = _STAMP.sub("2000-01-01", _PIXEL.sub(image, text))
        page.write_text(text)


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_STAMP = re.compile(r"(?!20000101T)\d{8}T\d{6}\.\d+Z")
_PIXEL = re.compile(r"https://great-expectations-web-assets[^\"' ]*")
_INDEX = {"class_name": "DefaultSiteIndexBuilder"}


def _expectations(config: CurationConfig) -> list[Any]:
    """What every manifest must hold."""
    import great_expectations.expectations as gxe

    low, high = config.clip_frames
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
    nullable = {"conversation_id", "camera", "partner_source_id", *SCORES}
    whole = [name for name in schema().names if name not in nullable]
    found += [gxe.ExpectColumnValuesToNotBeNull(column=name) for name in whole]
    found += [gxe.ExpectColumnValuesToBeBetween(column=name, min_value=0, max_value=1) for name in _SHARES]
    found += [gxe.ExpectColumnToExist(column=name) for name in SCORES]
    return found
