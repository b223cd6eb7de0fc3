"""The cost of both passes, written to timing.json."""

import logging
from collections import Counter
from pathlib import Path
from typing import Any

from components.curate.run import partial_results
from components.curate.run.job import Outcomes, SourceOutcomes
from components.dataset.sources import Source
from lpm_model.config import VIDEO_FPS
from lpm_model.files import write_json

log = logging.getLogger(__name__)


def write_timing(folder: Path, outcomes: SourceOutcomes) -> None:
    """Write timing.json, the only file of a dataset that differs between two identical runs."""
    timing = {
        partial_results.ANALYSIS: _pass_timing(outcomes.sources, outcomes.analysis),
        partial_results.CLIPS: _pass_timing(outcomes.sources, outcomes.clips),
    }
    write_json(folder / "timing.json", timing)


def _pass_timing(sources: list[Source], outcomes: Outcomes) -> dict[str, Any]:
    """Return worker seconds and bytes read, including sources that an earlier run has finished.

    `parts_s` covers accepted sources only: it breaks down `parts_of_s` seconds spent on `video_s` seconds of video.
    """
    done = [
        (source, outcomes[source.source_id]) for source in sources if "seconds" in outcomes.get(source.source_id, {})
    ]
    rejected_s = [outcome["seconds"] for _, outcome in done if not outcome["ok"]]
    accepted = [outcome for _, outcome in done if outcome["ok"]]
    parts_s: Counter[str] = Counter()
    for outcome in accepted:
        parts_s.update(outcome["parts_s"])
    timing = {
        "sources": len(done),
        "reused": sum("reused" in outcome for _, outcome in done),
        "seconds": round(sum(outcome["seconds"] for _, outcome in done), 3),
        "bytes": sum(source.bytes for source, _ in done),
        "slowest_rejection_s": max(rejected_s, default=0.0),
        "video_s": round(sum(outcome["frames"] for outcome in accepted) / VIDEO_FPS, 3),
        "parts_of_s": round(sum(outcome["seconds"] for outcome in accepted), 3),
        "parts_s": {name: round(value, 3) for name, value in parts_s.most_common()},
    }
    log.info("%(sources)d sources, %(reused)d of them reused: %(seconds).1f s, %(bytes)d bytes", timing)
    return timing
