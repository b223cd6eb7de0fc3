"""Links between sources: duplicates, and the two cameras of one conversation."""

import logging
from dataclasses import dataclass
from pathlib import Path

from components.curate.config import StateConfig
from components.curate.labels.cameras import Recording, find_cameras
from components.curate.run.analysis_file import ANALYSIS_FILE, load_fingerprint, load_recording
from components.curate.run.job import Run
from components.curate.video.duplicates import find_copies
from components.dataset.sources import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLinks:
    """Links between the analysed sources, by source id."""

    copied: dict[str, tuple[tuple[int, int], ...]]
    """Spans of frames (first, after the last) that duplicate an earlier source."""
    partners: dict[str, Source]
    """The source that shows the conversation partner."""


def link_sources(run: Run, sources: list[Source]) -> SourceLinks:
    """Find duplicated spans and conversation partners among the analysed sources."""
    files = {source.source_id: run.job(source).folder / ANALYSIS_FILE for source in sources}
    spans = find_copies([load_fingerprint(files[source.source_id]) for source in sources])
    partners = find_partners(sources, set(spans), files, run.config.states)
    return SourceLinks(copied={name: tuple(found) for name, found in spans.items()}, partners=partners)


def find_partners(
    sources: list[Source], duplicates: set[str], files: dict[str, Path], config: StateConfig
) -> dict[str, Source]:
    """Return the partner's source by source id: from the owner's metadata, otherwise matched by audio in a folder.

    Args:
        sources: analysed sources.
        duplicates: ids of sources that duplicate others: the audio would pair them with their originals.
        files: analysis file by source id.
        config: limits of the search by audio.
    """
    unnamed = [
        source
        for source in sources
        if not source.conversation_id and not source.camera and source.source_id not in duplicates
    ]
    return _partners_by_camera(sources) | _partners_by_audio(unnamed, files, config)


def _partners_by_camera(sources: list[Source]) -> dict[str, Source]:
    """Return the opposite camera's source for each source whose metadata names conversation and camera."""
    by_camera = {(source.conversation_id, source.camera): source for source in sources if source.conversation_id}
    partners: dict[str, Source] = {}
    for source in sources:
        other_side = {"a": "b", "b": "a"}.get(source.camera or "")
        other = by_camera.get((source.conversation_id, other_side)) if source.conversation_id else None
        if other is not None:
            partners[source.source_id] = other
    return partners


def _partners_by_audio(sources: list[Source], files: dict[str, Path], config: StateConfig) -> dict[str, Source]:
    """Return the partner of each source that recorded the same room as another one in its folder."""
    folders: dict[str, list[Source]] = {}
    for source in sources:
        folders.setdefault(str(Path(source.file).parent), []).append(source)
    partners: dict[str, Source] = {}
    for folder, group in folders.items():
        if len(group) > config.match_cameras_max:
            if config.match_cameras_max:
                log.info("%s: %d sources without a conversation_id are too many to pair", folder, len(group))
            continue
        found = [(source, load_recording(files[source.source_id])) for source in group]
        recordings: list[tuple[Source, Recording]] = [(one, record) for one, record in found if record is not None]
        for a, b in find_cameras([recording for _, recording in recordings], config.max_camera_offset_s):
            first, second = recordings[a][0], recordings[b][0]
            log.info("%s and %s show one conversation, as their audio matches", first.file, second.file)
            partners |= {first.source_id: second, second.source_id: first}
    return partners
