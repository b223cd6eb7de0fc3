"""Whether curation finds what is wrong: `python -m tests.benchmarks.defects [--cache DIR] [--json]`.

Clean clips of held-out performers are spoiled in many ways (tests/benchmarks/_planted.py), written as ordinary MP4
files and scored as curation scores them: first pass, labels, second pass, thresholds of the profile "tiny". A spoiled
clip is caught when none of it is kept, and caught with the right reason when one of the reasons given names its defect.
Material and results are kept in the cache, so a second call goes on where the first one stopped.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import platform
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.common import NoProgress, RichProgress, StepProgress, read_json, write_json
from components.curate.analyse import analyse
from components.curate.clips import Inputs, make_clips
from components.curate.config import CurationConfig, ScorerConfig
from components.curate.duplicates import Print, find_copies, frames_in
from components.curate.manifest import Source
from components.curate.pairing import label_source
from components.curate.probe import SourceRejected
from components.curate.scorers import SCORERS, make_scorers
from components.curate.store import ClipStore
from components.ingest.performer.media import write_mp4
from tests.benchmarks._planted import KINDS, Material, clean_clips

COUNT, CONVERSATIONS, SIZE_PX = 20, 16, 192
RIGHT_FLOOR, LOST_CEILING = 0.95, 0.05
CLEAN = "clean"

_UNSYNCED = (
    "sound_contradicts_mouth", "av_sync_below_min", "av_offset_frames_above_max", "av_offset_frames_below_min",
)  # fmt: skip

RIGHT: dict[str, tuple[str, ...]] = {
    "frozen": ("frozen_s_above_max",),
    "letterboxed": ("letterbox_ratio_above_max",),
    "logo": ("logo_ratio_above_max",),
    "subtitle": ("text_ratio_above_max",),
    "picture in picture": ("inset_ratio_above_max",),
    "blur": ("sharpness_below_min",),
    "dark": ("luminance_below_min", "black_ratio_above_max"),
    "over-exposed": ("luminance_above_max", "white_ratio_above_max"),
    "flicker": ("flicker_ratio_above_max",),
    "colour cast": ("colour_cast_above_max",),
    "camera shake": ("shake_ratio_above_max",),
    "duplicate": ("copied_ratio_above_max",),
    "wrong audio": _UNSYNCED,
    "shifted audio": _UNSYNCED,
    "two faces": ("one_face_ratio_below_min",),
    "no face": ("no_face",),
    "tiny face": ("face_px_below_min",),
    "hard cut": ("shot_ends_by_cut",),
    "dissolve": ("shot_ends_by_dissolve",),
    "music only": ("music_ratio_above_max",),
    "silence": ("silent_audio",),
    "sped up": ("speech_pace_above_max",),
}
"""Reasons that name each defect."""

_SPEAKING = ("wrong audio", "shifted audio", "silence")
_HEARD = ("sped up",)


class _NoEncoder:
    """Latents are not needed to decide."""

    digest = "none"

    def encode(self, clip: np.ndarray) -> np.ndarray:
        return np.zeros((1, 1 + (len(clip) - 1) // 4, 1, 1), np.float16)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What curation says about one file."""

    reasons: list[str]
    """Everything that is wrong; empty for a good clip."""
    kept: bool
    """Whether any clip of it is kept."""
    scores: list[dict[str, float | None]]
    """Scores of its clips."""
    detail: str
    """Where it failed before it gave clips."""


def settings() -> CurationConfig:
    """As for small pictures and short clips; single clips leave no room for references."""
    return CurationConfig(workers=1, require_reference=False, max_clip_s=4.0)


def source_of(file: Path) -> Source:
    """A line of the corpus for one file."""
    return Source(
        source_id=file.stem, file=file.name, sha256="", bytes=file.stat().st_size, origin="folder", licence="",
        consent_ref="",
    )  # fmt: skip


def judge(file: Path, copied: tuple[tuple[int, int], ...] = ()) -> Verdict:
    """Curation of one file, but for the latents."""
    config = settings()
    try:
        own = analyse(file.parent, source_of(file), config)
    except SourceRejected as error:
        return Verdict(reasons=[error.reason], kept=False, scores=[], detail=error.detail)
    inputs = Inputs(
        raw=file.parent, own=own, labelled=label_source(own, None, config.states), partner=None, config=config,
        encoder=_NoEncoder(), scorers=make_scorers(config.scorers), copied=frames_in(copied, own.frames),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = make_clips(inputs, ClipStore(Path(folder)))
    reasons = [reason for row in found.rows for reason in row["reasons"]] + list(found.track_reasons)
    columns = [column for scorer in inputs.scorers for column in scorer.columns]
    return Verdict(
        reasons=sorted(set(reasons)),
        kept=any(row["kept"] for row in found.rows),
        scores=[{column: row[column] for column in columns} for row in found.rows],
        detail=f"shots {own.shots}",
    )


def fingerprint(file: Path) -> Print:
    """What tells copies; nothing else of the first pass is needed."""
    config = settings()
    off = tuple(scorer.name for scorer in SCORERS)
    own = analyse(
        file.parent, source_of(file), dataclasses.replace(config, mesh_stride=24, scorers=ScorerConfig(off=off))
    )
    return Print(
        source_id=file.stem, shots=own.shots, hashes=own.hashes, change=own.change, loudness=own.loudness
    )  # fmt: skip


def plant(kind: str, clips: list[Material], number: int) -> tuple[Material, Any]:
    """The clean clip that is spoiled, and the spoiled one."""
    chance = np.random.default_rng([sorted(KINDS).index(kind), number])
    offered = clips
    if kind in _SPEAKING:
        offered = [clip for clip in clips if clip.speaks > 0.4]
    elif kind in _HEARD:
        offered = [clip for clip in clips if clip.heard > 0.5]
    at = (number * 7 + sorted(KINDS).index(kind)) % len(offered)
    clip = offered[at]
    strangers = [other for other in clips if other.name[:-2] != clip.name[:-2] and other.heard > 0.4]
    other = strangers[int(chance.integers(len(strangers)))]
    return clip, KINDS[kind](clip, other, chance)


def write_material(cache: Path, kinds: list[str], count: int, clips: list[Material]) -> dict[str, list[Path]]:
    """Files of every kind, and the clean ones; what is there already is kept."""
    files: dict[str, list[Path]] = {}
    for number, clip in enumerate(clips):
        files.setdefault(CLEAN, []).append(_write(cache / CLEAN / f"{number:03d}.mp4", clip.pictures, clip.sound))
    for kind in kinds:
        for number in range(count):
            file = cache / kind.replace(" ", "_") / f"{number:03d}.mp4"
            if not file.exists():
                _, spoiled = plant(kind, clips, number)
                _write(file, spoiled.pictures, spoiled.sound)
            files.setdefault(kind, []).append(file)
    return files


def _write(file: Path, pictures: np.ndarray, sound: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_mp4(file, pictures, sound, 20)
    return file


def copies_among(files: dict[str, list[Path]], pool: Any) -> dict[str, tuple[tuple[int, int], ...]]:
    """Spans that the clean clips, which come first, show as well; by duplicate and by clean clip."""
    given = [*files[CLEAN], *files.get("duplicate", [])]
    prints = {str(file): found for file, found in zip(given, pool.map(fingerprint, given), strict=True)}
    found = find_copies([dataclasses.replace(one, source_id=name) for name, one in prints.items()])
    return {name: tuple(spans) for name, spans in found.items()}


@functools.cache
def _code() -> str:
    """Digest of the judging code: results of other code are not reused."""
    total = hashlib.sha256()
    for file in sorted((Path(__file__).parents[2] / "components" / "curate").rglob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def results(
    cache: Path, files: dict[str, list[Path]], workers: int, progress: StepProgress
) -> dict[str, list[Verdict]]:
    """Verdicts by kind; finished kinds are read back."""
    verdicts: dict[str, list[Verdict]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        copied: dict[str, tuple[tuple[int, int], ...]] | None = None
        for kind in progress.track(list(files), "judge"):
            kept = cache / "results" / f"{kind.replace(' ', '_')}-{len(files[kind])}-{_code()}.json"
            if kept.exists():
                verdicts[kind] = [Verdict(**one) for one in read_json(kept)]
                continue
            if kind in (CLEAN, "duplicate") and copied is None:
                copied = copies_among(files, pool)
            spans = [(copied or {}).get(str(file), ()) for file in files[kind]]
            verdicts[kind] = list(pool.map(judge, files[kind], spans))
            write_json(kept, verdicts[kind])
    return verdicts


def table(verdicts: dict[str, list[Verdict]]) -> dict[str, dict[str, int]]:
    """Counts by kind: right, other, missed."""
    counts = {}
    for kind, found in verdicts.items():
        if kind == CLEAN:
            continue
        right = sum(not v.kept and bool(set(v.reasons) & set(RIGHT[kind])) for v in found)
        missed = sum(v.kept for v in found)
        counts[kind] = {"right": right, "other": len(found) - right - missed, "missed": missed}
    return counts


def show(verdicts: dict[str, list[Verdict]]) -> dict[str, float]:
    """Print the table; returns the two shares."""
    counts = table(verdicts)
    print(f"{'planted defect':<20}{'right':>8}{'other':>8}{'missed':>8}   other reasons")
    for kind, row in counts.items():
        wrong = [v for v in verdicts[kind] if not v.kept and not set(v.reasons) & set(RIGHT[kind])]
        others = Counter(reason for v in wrong for reason in v.reasons)
        text = ", ".join(f"{name} {n}" for name, n in others.most_common(3))
        print(f"{kind:<20}{row['right']:>8}{row['other']:>8}{row['missed']:>8}   {text}")
    planted = sum(sum(row.values()) for row in counts.values())
    right = sum(row["right"] for row in counts.values())
    lost = [v for v in verdicts[CLEAN] if not v.kept]
    print(f"right reason: {right} of {planted} ({100 * right / max(planted, 1):.1f} %, at least {RIGHT_FLOOR:.0%})")
    share = len(lost) / len(verdicts[CLEAN])
    print(
        f"clean lost:   {len(lost)} of {len(verdicts[CLEAN])} ({100 * share:.1f} %, at most {100 * LOST_CEILING:.0f} %)"
    )
    for reason, count in Counter(reason for v in lost for reason in v.reasons).most_common():
        print(f"  {reason} {count}")
    return {"right": right / max(planted, 1), "clean_lost": share}


def main() -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".work/defects"), help="folder of material and results")
    parser.add_argument("--count", type=int, default=COUNT, help="clips of each kind")
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS, help="performed for the clean clips")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="which defects")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    start = time.perf_counter()
    progress: StepProgress = NoProgress() if arguments.json else RichProgress()
    cache = arguments.cache / f"{arguments.conversations}x{SIZE_PX}"
    clips = clean_clips(cache / "performed", arguments.conversations, SIZE_PX, progress, arguments.workers)
    files = write_material(cache / "planted", arguments.kinds, arguments.count, clips)
    del clips
    shares = show(results(cache, files, arguments.workers, progress))
    seconds = time.perf_counter() - start
    print(f"{platform.machine()}, {arguments.workers} processes, {SIZE_PX} px, {seconds:.0f} s")
    if arguments.json:
        print(json.dumps({**{name: round(value, 4) for name, value in shares.items()}, "seconds": round(seconds)}))


if __name__ == "__main__":
    main()
