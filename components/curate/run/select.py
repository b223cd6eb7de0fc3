"""Select the sources to process: skip erased recordings, duplicates and redundant two-shots."""

from components.curate.config import CurationConfig
from components.curate.run.job import Outcomes, rejection
from components.dataset.sources import Source
from components.dataset.tombstones import Tombstones


def skip_sources(sources: list[Source], config: CurationConfig, tombstones: Tombstones) -> Outcomes:
    """Return the outcomes of erased sources, exact duplicates, and two-shots of people who each have a camera.

    Args:
        sources: all sources, in order of their ids: the first of several duplicates is used.
        config: whether two-shots are used anyway.
        tombstones: erased recordings and people.
    """
    cameras = {(source.conversation_id, source.camera) for source in sources if source.conversation_id}
    skipped: Outcomes = {}
    first_file: dict[str, str] = {}
    for source in sources:
        if match := tombstones.find_match(source.sha256, source.source_id, source.person_hint):
            detail = f"removed on request (lpm data erase), matched by its {match}"
            skipped[source.source_id] = rejection(source, "erased", detail)
            continue
        if source.sha256 and source.sha256 in first_file:
            skipped[source.source_id] = rejection(source, "duplicate", f"same bytes as {first_file[source.sha256]}")
            continue
        first_file[source.sha256] = source.file
        singles = {(source.conversation_id, "a"), (source.conversation_id, "b")} <= cameras
        if source.camera == "two_shot" and singles and not config.use_two_shots:
            skipped[source.source_id] = rejection(source, "two_shot_skipped", "each person has their own camera")
    return skipped
