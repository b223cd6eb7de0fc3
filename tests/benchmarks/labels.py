"""Accuracy of the labels: `python -m tests.benchmarks.labels [--cache DIR] [--scale N] [--json]`.

Conversations of held-out people are rendered with ground truth, and noise and music are added to the audio. Every
layout (two cameras that record each other's voice, one camera, both people in one shot) and size is labelled and
compared. Nothing here was used to tune a threshold (`--bank train` uses the people that were).

Pairing is measured twice: by frames in which one person speaks to the other (`pairing_`, the bars), and by turns
(`pairing_turns_`): a detected turn is correct if it overlaps a true turn of the same person by half of their union.
"""

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curate.config import IdentityConfig, IntervalConfig, StateConfig
from components.curate.labels.cameras import Recording, find_cameras, gap_on_timeline
from components.curate.labels.intervals import Interval, find_intervals
from components.curate.labels.offset import find_av_offset, mel_bands
from components.curate.labels.pairing import SourceLabels, label_source
from components.curate.video import identity
from components.curate.video.analysis import Analysis
from components.dataset.states import DISCARD, SPEAK
from lpm_model.config import VIDEO_FPS
from lpm_model.progress import NoProgress
from tests.benchmarks import _labels_people
from tests.benchmarks._labels_material import CONDITIONS, LAYOUTS, Layout, Take, shifted, takes, with_noise

STATES, INTERVALS = StateConfig(), IntervalConfig()
SIZES = {128: 4, 256: 2, 512: 1}
"""Conversations by size, times --scale."""
PEOPLE = {128: 20, 256: 56}
NAMES = ("idle", "speak", "listen", "discard")
BARS = {
    "accuracy": 0.95, "recall_speak": 0.95, "recall_listen": 0.92, "pairing_precision": 0.98, "pairing_recall": 0.95,
    "cameras_precision": 0.98, "cameras_recall": 0.95, "yaw_error_deg": 5.0, "offsets_within_1_frame": 0.95,
    "identity_purity": 0.98, "turn_boundaries_within_120_ms": 0.9,
}  # fmt: skip
_BOUNDARY_FRAMES = 0.120 * VIDEO_FPS

States = NDArray[np.uint8]


@dataclass(kw_only=True, slots=True)
class Counts:
    """Counts over all comparisons."""

    confusion: dict[tuple[int, str, Layout], NDArray[np.int64]] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros((3, 4), np.int64))
    )
    """[ground truth, label] frames by size, condition and layout."""
    boundaries: dict[tuple[str, Layout], list[float]] = field(default_factory=lambda: defaultdict(list))
    """Delay in frames of the nearest detected start or stop of each true turn, by condition and layout."""
    addressed: dict[tuple[str, Layout], NDArray[np.int64]] = field(
        default_factory=lambda: defaultdict(lambda: np.zeros(3, np.int64))
    )
    """Frames in which one person speaks to the other: correct, detected, true; by condition and layout."""
    turns: NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, np.int64))
    """Turns: correct, detected, true."""


def people_of(take: Take, layout: Layout) -> dict[str, States]:
    """Return the labelled states of both people, by side; discard where nobody was detected."""
    frames = len(take.ground_truth["a"]["state"])
    out = {side: np.full(frames, DISCARD, np.uint8) for side in "ab"}
    if layout == "two people in one shot":
        shot = take.cameras["two_shot"]
        found = label_source(shot, None, STATES)
        order = sorted(range(len(shot.tracks)), key=lambda i: float(np.nanmean(shot.tracks[i].column("x0"))))
        halves = shot.header.width_px / 2
        for index in order:
            side = "a" if float(np.nanmean(shot.tracks[index].column("x0"))) < halves * 0.75 else "b"
            _put(out[side], shot, found, index)
        return out
    for side, other in (("a", "b"), ("b", "a")):
        own = take.cameras[side]
        found = label_source(own, take.cameras[other] if layout == "two cameras" else None, STATES)
        for index in range(len(own.tracks)):
            _put(out[side], own, found, index)
    return out


def _put(states: States, own: Analysis, found: SourceLabels, index: int) -> None:
    track = own.tracks[index]
    part = found.labels[index].states[: max(len(states) - track.start, 0)]
    states[track.start : track.start + len(part)] = part


def compare(take: Take, condition: str, layout: Layout, counts: Counts) -> None:
    """Label one conversation and count the results."""
    found = people_of(take, layout)
    truth = {side: take.ground_truth[side]["state"][: len(found[side])] for side in "ab"}
    table = counts.confusion[take.size_px, condition, layout]
    for side in "ab":
        np.add.at(table, (truth[side], np.where(found[side] == DISCARD, 3, found[side])), 1)
    if layout == "one camera":
        return
    for one, other in (("a", "b"), ("b", "a")):
        real = (truth[one] == SPEAK) & (truth[other] != SPEAK)
        labelled = (found[one] == SPEAK) & (found[other] != SPEAK)
        counts.addressed[condition, layout] += [int((real & labelled).sum()), int(labelled.sum()), int(real.sum())]
    wanted = find_intervals(truth["a"] == SPEAK, truth["b"] == SPEAK, INTERVALS)
    got = find_intervals(found["a"] == SPEAK, found["b"] == SPEAK, INTERVALS)
    counts.boundaries[condition, layout] += boundary_errors(wanted, got)
    counts.turns += right_turns(wanted, got)


def boundary_errors(wanted: list[Interval], got: list[Interval]) -> list[float]:
    """Return the delay (frames) of the same person's nearest detected boundary for each true turn's start and stop.

    Infinite if the person has no turn.
    """
    errors = []
    for turn in (one for one in wanted if one.kind == "turn"):
        for end in ("start", "stop"):
            others = [getattr(one, end) for one in got if one.kind == "turn" and one.who == turn.who]
            errors.append(min((at - getattr(turn, end) for at in others), key=abs, default=float("inf")))
    return errors


def right_turns(wanted: list[Interval], got: list[Interval]) -> tuple[int, int, int]:
    """Return the number of correct (half of the union is shared), detected and true turns."""
    true, found = ([one for one in many if one.kind == "turn"] for many in (wanted, got))

    def same(one: Interval, other: Interval) -> bool:
        shared = min(one.stop, other.stop) - max(one.start, other.start)
        return one.who == other.who and 2 * shared >= max(one.stop, other.stop) - min(one.start, other.start)

    return sum(any(same(one, other) for other in true) for one in found), len(found), len(true)


def offsets(found: list[Take]) -> dict[str, float]:
    """Return the fraction of planted offsets found within one frame, and their confidences."""
    hits, confidences = [], []
    for take in found:
        for name, own in take.cameras.items():
            people = [(track.start, track.column("gap")) for track in own.tracks]
            for planted in (*range(-12, 0), *range(1, 13)) if name == "a" else (-12, -3, 7):
                got = find_av_offset(people, mel_bands(shifted(own.track, planted)))
                hits.append(abs(got.frames - planted) <= 1)
                confidences.append((got.confidence, hits[-1]))
    wrong = [confidence for confidence, hit in confidences if not hit]
    kept = [hit for confidence, hit in confidences if confidence >= STATES.min_av_offset_confidence]
    return {
        "offsets_within_1_frame": float(np.mean(hits)),
        "offsets_confident": len(kept) / len(confidences),
        "offsets_confident_within_1_frame": float(np.mean(kept)) if kept else float("nan"),
        "offsets_highest_wrong_confidence": max(wrong, default=0.0),
    }


def cameras(found: list[Take]) -> tuple[int, int, int]:
    """Match cameras by audio alone; return (correct, detected, true) pairs."""
    seen = [(take, take.cameras[side]) for take in found for side in "ab"]
    recordings = [Recording(track=one.track, gap=gap_on_timeline(one.tracks[0], one.frames)) for _, one in seen]
    pairs = find_cameras(recordings, STATES.max_camera_offset_s)
    right = sum(seen[a][0] is seen[b][0] for a, b in pairs)
    return right, len(pairs), len(found)


def people(cache: Path, bank: str, scale: int) -> dict[str, float]:
    """Return the yaw error and the identity purity over all sizes."""
    errors: list[NDArray[np.float32]] = []
    out: dict[str, float] = {}
    for size_px, count in PEOPLE.items():
        shots = _labels_people.measure_people(cache, bank, count * scale, size_px, NoProgress())
        errors.append(shots.yaw_error_deg.ravel())
        groups = identity.group(shots.embedding, [], IdentityConfig().max_rendered_distance)
        pure = _labels_people.purity(groups, shots.person)
        whole = float(np.mean([groups[2 * i] == groups[2 * i + 1] for i in range(count * scale)]))
        key = "" if size_px == max(PEOPLE) else f"_{size_px}px"
        out |= {f"identity_purity{key}": pure, f"identity_both_shots_together{key}": whole}
        out |= {f"identity_people{key}": float(count * scale)}
    return {"yaw_error_deg": float(np.nanmean(np.concatenate(errors))), **out}


def run(cache: Path, bank: Any, scale: int) -> tuple[Counts, dict[str, float]]:
    """Run all measurements; return the counts and the summary figures."""
    material = takes(cache, bank, {size: count * scale for size, count in SIZES.items()}, NoProgress())
    counts, matched, planted = Counts(), np.zeros(3, np.int64), []
    for condition in CONDITIONS:
        noisy = [with_noise(take, condition) for take in material]
        for take in noisy:
            for layout in LAYOUTS:
                compare(take, condition, layout, counts)
        if condition in ("clean", "noise 5 dB", "music 5 dB"):
            matched += cameras(noisy)
            planted.append(offsets(noisy))
    total = np.sum(list(counts.confusion.values()), axis=0)
    right, labelled, real = (int(value) for value in np.sum(list(counts.addressed.values()), axis=0))
    errors = np.concatenate([np.array(values) for values in counts.boundaries.values()])
    figures = {
        **rates(total),
        "pairing_precision": right / max(labelled, 1),
        "pairing_recall": right / max(real, 1),
        "pairing_turns_precision": float(counts.turns[0] / max(counts.turns[1], 1)),
        "pairing_turns_recall": float(counts.turns[0] / max(counts.turns[2], 1)),
        "cameras_precision": float(matched[0] / max(matched[1], 1)),
        "cameras_recall": float(matched[0] / matched[2]),
        "turn_boundaries_within_120_ms": float(np.mean(np.abs(errors) <= _BOUNDARY_FRAMES)),
        **{name: float(np.nanmean([one[name] for one in planted])) for name in planted[0]},
        **people(cache, bank, scale),
    }
    return counts, figures


def rates(table: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy (discarded frames count as wrong), recalls and the discarded fraction of a confusion table."""
    recalls = np.diagonal(table[:, :3]) / np.maximum(table.sum(axis=1), 1)
    return {
        "accuracy": float(np.trace(table[:, :3]) / table.sum()),
        **{f"recall_{name}": float(value) for name, value in zip(NAMES, recalls, strict=False)},
        "discarded": float(table[:, 3].sum() / table.sum()),
    }


def show(counts: Counts, figures: dict[str, float]) -> None:
    """Print the tables."""
    total = np.sum(list(counts.confusion.values()), axis=0)
    print(f"{'truth / label':<14}" + "".join(f"{name:>10}" for name in NAMES))
    for name, row in zip(NAMES, total, strict=False):
        print(f"{name:<14}" + "".join(f"{int(value):>10}" for value in row))
    for about, place in (("size_px", 0), ("audio", 1), ("layout", 2)):
        print(f"\n{about:<26}{'accuracy':>10}{'speak':>10}{'listen':>10}{'idle':>10}{'discarded':>11}")
        for value in dict.fromkeys(key[place] for key in counts.confusion):
            part = rates(np.sum([t for key, t in counts.confusion.items() if key[place] == value], axis=0))
            row = ("accuracy", "recall_speak", "recall_listen", "recall_idle", "discarded")
            print(f"{value!s:<26}" + "".join(f"{part[n]:>{11 if n == 'discarded' else 10}.3f}" for n in row))
    names = "".join(f"{name:>8}" for name in ("early", "late", "lost"))
    print(f"\n{'turn boundaries, pairing':<50}{'in 120 ms':>10}{names}{'precision':>11}")
    for (condition, layout), distances in counts.boundaries.items():
        print(f"{condition:<24}{layout:<26}" + _edges_row(np.array(distances), counts.addressed[condition, layout]))
    worst = sorted((rates(table)["accuracy"], key) for key, table in counts.confusion.items())[:3]
    print("\nworst: " + "; ".join(f"{key[0]} px, {key[1]}, {key[2]}: {value:.3f}" for value, key in worst) + "\n")
    for name, figure in figures.items():
        bar = BARS.get(name)
        kept = (
            "" if bar is None else "met" if (figure <= bar if name == "yaw_error_deg" else figure >= bar) else "MISSED"
        )
        print(f"{name:<36}{figure:>9.4f}{'' if bar is None else f'{bar:>9.2f}'}  {kept}")


def _edges_row(distances: NDArray[np.float64], addressed: NDArray[np.int64]) -> str:
    """Format the fractions of boundaries on time, early, late and lost, and the pairing precision."""
    lost = np.abs(distances) > VIDEO_FPS / 2
    masks = [
        np.abs(distances) <= _BOUNDARY_FRAMES,
        (distances < -_BOUNDARY_FRAMES) & ~lost,
        (distances > _BOUNDARY_FRAMES) & ~lost,
        lost,
    ]
    first, *rest = (float(np.mean(mask)) for mask in masks)
    return f"{first:>10.3f}" + "".join(f"{v:>8.3f}" for v in rest) + f"{addressed[0] / max(addressed[1], 1):>11.3f}"


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".work/labels"), help="folder of rendered material")
    parser.add_argument("--scale", type=int, default=1, help="multiplier for the number of conversations and people")
    parser.add_argument("--bank", choices=("train", "heldout"), default="heldout", help="bank of sentences and faces")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    counts, figures = run(arguments.cache, arguments.bank, arguments.scale)
    show(counts, figures)
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
