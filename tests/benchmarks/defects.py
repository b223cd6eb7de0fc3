"""Whether curation finds what is wrong: `python -m tests.benchmarks.defects [--kinds NAME ...] [--seed N] [--json]`.

Clean clips of held-out performers are spoiled in many ways (tests/benchmarks/_planted.py), written as ordinary MP4
files and scored as curation scores them: first pass, offset of the sound, labels, second pass, thresholds of the
profile "tiny". A spoiled clip is caught when none of it is kept, and caught with the right reason when one of the
reasons given names its defect. Thresholds were chosen on seed 41; what is reported comes from another seed, with other
people, words and draws. Material and results are kept in the cache, so a second call goes on where the first stopped,
and `--kinds` does some of the kinds at a time.
"""

import argparse
import ast
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.curate.captions.measured import MeasuredCaptioner
from components.curate.clips.make import Inputs, make_clips
from components.curate.clips.store import ClipStore
from components.curate.config import CurationConfig, IdentityConfig, ScorerConfig
from components.curate.labels.pairing import label_source
from components.curate.run.analyse import analyse
from components.curate.run.passes import in_sync
from components.curate.scorers import SCORERS, make_scorers
from components.curate.video.duplicates import SourceFingerprint, find_copies, frames_in
from components.curate.video.probe import SourceRejected
from components.curate.video.roi_cache import RoiCache
from components.dataset.sources import Source
from components.performer.media import write_mp4
from components.runtime.progress import RichProgress
from lpm_model.files import read_json, write_json
from lpm_model.progress import NoProgress, Progress
from tests.benchmarks._planted import KINDS, Material, Planted, clean_clips

TUNING_SEED, SEED = 41, 23
"""Of the material that thresholds may be chosen on, and of what is reported."""
COUNT, CONVERSATIONS, SIZE_PX = 20, 16, 192
CLEAN_PER_CONVERSATION = 4
"""Two cameras, two halves."""
RIGHT_FLOOR, LOST_CEILING = 0.95, 0.05
CLEAN = "clean"

_UNSYNCED = (
    "audio_offset", "sound_contradicts_mouth", "av_sync_below_min", "av_offset_frames_above_max",
    "av_offset_frames_below_min",
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
    "sped up": ("speech_pace_above_max", "voice_hz_above_max"),
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
    whoever = IdentityConfig(frames=0)  # decides nothing about a clip
    return CurationConfig(workers=1, require_reference=False, max_clip_s=4.0, identity=whoever)


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
        own, av_offset = in_sync(analyse(file.parent, source_of(file), config), config.states)
    except SourceRejected as error:
        return Verdict(reasons=[error.reason], kept=False, scores=[], detail=error.detail)
    labelled = dataclasses.replace(label_source(own, None, config.states), av_offset=av_offset)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(
            raw=file.parent, own=own, labelled=labelled, partner=None, config=config, encoder=_NoEncoder(),
            captioner=MeasuredCaptioner(), scorers=make_scorers(config.scorers),
            roi_cache=RoiCache(Path(folder), own.frames), copied=frames_in(copied, own.frames),
        )  # fmt: skip
        found = make_clips(inputs, ClipStore(Path(folder)))
    reasons = [reason for row in found.rows for reason in row["reasons"]] + list(found.track_reasons)
    columns = [column for scorer in inputs.scorers for column in scorer.columns]
    return Verdict(
        reasons=sorted(set(reasons)),
        kept=any(row["kept"] for row in found.rows),
        scores=[{column: row[column] for column in columns} for row in found.rows],
        detail=f"shots {own.shots}",
    )


def fingerprint(file: Path) -> SourceFingerprint:
    """What tells copies; nothing else of the first pass is needed."""
    config = settings()
    off = tuple(scorer.name for scorer in SCORERS)
    own = analyse(
        file.parent, source_of(file), dataclasses.replace(config, mesh_stride=24, scorers=ScorerConfig(disabled=off))
    )
    return SourceFingerprint(
        source_id=file.stem, shots=own.shots, hashes=own.hashes, change=own.change, loudness=own.loudness
    )  # fmt: skip


def plant(kind: str, clips: list[Material], number: int, seed: int) -> Planted:
    """The spoiled clip of a kind with a number."""
    at_kind = sorted(KINDS).index(kind)
    chance = np.random.default_rng([at_kind, number, seed])
    offered = clips
    if kind in _SPEAKING:
        offered = [clip for clip in clips if clip.speaks > 0.4]
    elif kind in _HEARD:
        offered = [clip for clip in clips if clip.heard > 0.5]
    clip = offered[(number * 7 + at_kind) % len(offered)]
    strangers = [other for other in clips if other.name[:-2] != clip.name[:-2] and other.heard > 0.4]
    return KINDS[kind](clip, strangers[int(chance.integers(len(strangers)))], chance)


def write_material(
    cache: Path, kinds: list[str], count: int, clean: int, seed: int, perform: Callable[[], list[Material]]
) -> dict[str, list[Path]]:
    """Files of the clean clips and of every kind; what is there already is kept, and people only perform for the rest.

    Args:
        cache: folder of the files.
        kinds: defects.
        count: files of each defect.
        clean: how many clips `perform` gives.
        seed: of the draws.
        perform: gives the clean clips.
    """
    names = {kind: cache / kind.replace(" ", "_") for kind in (CLEAN, *kinds)}
    files = {
        kind: [folder / f"{number:03d}.mp4" for number in range(clean if kind == CLEAN else count)]
        for kind, folder in names.items()
    }
    missing = [(kind, n) for kind, found in files.items() for n, file in enumerate(found) if not file.exists()]
    clips = perform() if missing else []
    for kind, number in missing:
        made = clips[number] if kind == CLEAN else plant(kind, clips, number, seed)
        file = files[kind][number]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{number:03d}-partial.mp4")
        write_mp4(partial, made.pictures, made.sound, 20)
        partial.rename(file)
    return files


def copies_among(files: dict[str, list[Path]], pool: Any) -> dict[str, tuple[tuple[int, int], ...]]:
    """Spans that the clean clips, which come first, show as well; by duplicate and by clean clip."""
    given = [*files[CLEAN], *files.get("duplicate", [])]
    prints = {str(file): found for file, found in zip(given, pool.map(fingerprint, given), strict=True)}
    found = find_copies([dataclasses.replace(one, source_id=name) for name, one in prints.items()])
    return {name: tuple(spans) for name, spans in found.items()}


_ELSEWHERE = (
    "browse", "captions", "component", "cost", "encode", "executor", "expressions", "forget", "funnel", "gate",
    "identity", "intervals", "kept", "likeness", "manifest", "motion", "options", "outputs", "parts", "proof",
    "references", "report", "rows", "shards", "step", "vlm", "vocabulary",
)  # fmt: skip
"""Modules of curation that decide nothing about a clip without references."""


@functools.cache
def _code() -> str:
    """Digest of what judges: the results of other code are not reused; words about it don't count."""
    home = Path(__file__).parents[2] / "components" / "curate"
    files = [file for file in sorted(home.rglob("*.py")) if file.parent != home or file.stem not in _ELSEWHERE]
    weights = [file.read_bytes() for file in sorted(home.rglob("*.safetensors"))]
    return hashlib.sha256(b"".join([*map(_syntax, files), *weights])).hexdigest()[:16]


@functools.cache
def _plants() -> str:
    """Digest of what spoils clips."""
    return hashlib.sha256(_syntax(Path(__file__).with_name("_planted.py"))).hexdigest()[:8]


def _syntax(file: Path) -> bytes:
    """A module without its words."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [one for one in node.body if not _is_text(one)]
    return ast.dump(tree).encode()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def results(cache: Path, files: dict[str, list[Path]], workers: int, progress: Progress) -> dict[str, list[Verdict]]:
    """Verdicts by kind; those that are there already are read back."""
    home = cache / f"results-{_plants()}" / _code()
    kept = {file: home / file.parent.name / f"{file.stem}.json" for found in files.values() for file in found}
    missing = [file for file, place in kept.items() if not place.exists()]
    if missing:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            copied = {}
            if any(file.parent.name in (CLEAN, "duplicate") for file in missing):
                copied = copies_among(files, pool)
            work = pool.map(judge, missing, [copied.get(str(file), ()) for file in missing])
            for file, verdict in zip(missing, progress.track(work, "judge", total=len(missing)), strict=True):
                kept[file].parent.mkdir(parents=True, exist_ok=True)
                write_json(kept[file], verdict)
    return {kind: [Verdict(**read_json(kept[file])) for file in found] for kind, found in files.items()}


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
    """SourceFingerprint the table; returns the two shares."""
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
    parser.add_argument("--seed", type=int, default=SEED, help=f"of people, words and draws; {TUNING_SEED} is tuned on")
    parser.add_argument("--count", type=int, default=COUNT, help="clips of each kind")
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS, help="performed for the clean clips")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS), help="which defects")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    start = time.perf_counter()
    progress: Progress = NoProgress() if arguments.json else RichProgress()
    cache = arguments.cache / f"seed{arguments.seed}-{arguments.conversations}x{SIZE_PX}"
    perform = functools.partial(
        clean_clips, cache / "performed", arguments.conversations, SIZE_PX, arguments.seed, progress, arguments.workers
    )
    clean = arguments.conversations * CLEAN_PER_CONVERSATION
    files = write_material(
        cache / f"planted-{_plants()}", arguments.kinds, arguments.count, clean, arguments.seed, perform
    )
    verdicts = results(cache, files, arguments.workers, progress)
    shares = show(verdicts)
    seconds = time.perf_counter() - start
    print(f"{platform.machine()}, {arguments.workers} processes, {SIZE_PX} px, seed {arguments.seed}, {seconds:.0f} s")
    if arguments.json:
        print(json.dumps({**shares, "by_kind": table(verdicts), "seed": arguments.seed, "size_px": SIZE_PX}))


if __name__ == "__main__":
    main()
