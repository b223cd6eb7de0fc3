"""Accuracy of expressions and of face matching: `python -m tests.benchmarks.expressions [--people N] [--json]
[--conversations N]`.

People are rendered with one expression each, at 0.4 to 1.4 of the strength used in conversations, half of the images
with an open jaw; turned heads and open mouths count as neutral. A word is correct if it names the rendered expression.
Faces: distance of a single face from the mean of its own person and of others. The people are held out; none was used
for tuning.

In conversations, a segment's caption is correct if it names the emotion rendered in most of it. The strength and
duration required for a named expression were tuned on seeds 41 to 44; reported results use another seed.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.curate.captions.expressions import expression_strengths
from components.curate.captions.measured import MeasuredCaptioner, describable_frames
from components.curate.clips.plan import Plan
from components.curate.clips.rows import caption_input
from components.curate.config import CurationConfig, IdentityConfig, ScorerConfig
from components.curate.labels.pairing import label_source
from components.curate.run.analyse import analyse
from components.curate.scorers import SCORERS
from components.curate.video.crops import Crop
from components.curate.video.faces import FEATURES, FaceFinder
from components.curate.video.identity import ONE_FACE_DISTANCE, embed
from components.performer.compose import HELDOUT_PEOPLE, render_corpus
from components.performer.config import PerformerConfig
from components.performer.identity import Identity
from components.performer.renderer import Renderer
from components.performer.tracks import ARKIT_INDEX, Tracks
from lpm_model.progress import NoProgress
from tests.benchmarks.defects import source_of
from tests.curate.corpus import as_frame

SHOWN: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmile": 0.5, "cheekSquint": 0.3},
    "sad": {"mouthFrown": 0.4, "browInnerUp": 0.5},
    "surprise": {"browInnerUp": 0.5, "browOuterUp": 0.5, "eyeWide": 0.5},
    "frown": {"eyeSquint": 0.5, "browDown": 0.4},
    "talk": {"jawOpen": 0.4},
    "turn": {},
}
"""Blendshapes of each expression at strength 1, on both sides if there are two."""
WORDS = ("smile", "sad", "surprise", "frown")
RENDERED = {
    "neutral": ("neutral",), "happy": ("smiling", "laughing"), "sad": ("sadness",), "surprised": ("surprise",),
    "angry": ("frowning",),
}  # fmt: skip
"""Correct words for each emotion of a conversation; a thoughtful face has no word of its own."""
_TALK_S, _TALK_SEED, _CLIP_FRAMES, _MOST = 20.0, 47, 97, 0.7
_EACH = 6
_SIZE_PX = 128
_MEAN_OF = 3
"""Neutral faces averaged to represent a person."""


def _performance(chance: np.random.Generator) -> tuple[Tracks, NDArray[np.str_]]:
    """Return frames and the expression of each."""
    kinds = np.repeat(list(SHOWN), _EACH)
    tracks = Tracks.rest(len(kinds))
    for i, kind in enumerate(kinds):
        tracks.rotation[i] = chance.normal(0, [0.06, 0.08, 0.04])
        if kind == "turn":
            tracks.rotation[i, 1] = (-1) ** i * chance.uniform(0.2, 0.7)
        elif i % 2:
            tracks.blendshapes[i, ARKIT_INDEX["jawOpen"]] += chance.uniform(0, 0.35)
        strength = chance.uniform(0.4, 1.4)
        for shape, weight in SHOWN[kind].items():
            for name in (shape, f"{shape}_L", f"{shape}_R"):
                if name in ARKIT_INDEX:
                    tracks.blendshapes[i, ARKIT_INDEX[name]] += weight * strength
    return tracks, kinds


def _person(renderer: Renderer, seed: int) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.float32]]:
    """Return rendered and predicted expressions [frames], and embeddings of the neutral, smiling and turned faces."""
    tracks, kinds = _performance(np.random.default_rng(seed))
    rows, faces = [], []
    for picture, kind in zip(renderer.render(Identity.from_seed(seed), tracks), kinds, strict=True):
        finder = FaceFinder(1)
        found = finder.find(as_frame(picture))
        finder.reset()
        rows.append(found[0] if found else np.full(len(FEATURES), np.nan, np.float32))
        face = embed(picture, rows[-1]) if kind in ("neutral", "smile", "turn") else None
        faces.append(np.full(128, np.nan, np.float32) if face is None else face)
    table = np.stack(rows)
    found_by = expression_strengths(table, np.nanmedian(table, axis=0))
    level = np.nan_to_num(np.stack([found_by[word] for word in WORDS]))
    predicted = np.where(level.max(axis=0) >= 1, np.array(WORDS)[level.argmax(axis=0)], "neutral")
    return kinds, predicted, np.stack(faces)


def _faces(kinds: NDArray[np.str_], faces: NDArray[np.float32]) -> dict[str, float]:
    """Return the fraction of faces [people, frames, 128] accepted as their own person, and as another one."""
    neutral = np.flatnonzero(kinds == "neutral")
    means = np.nanmean(faces[:, neutral[:_MEAN_OF]], axis=1)
    limit = IdentityConfig().max_rendered_distance + ONE_FACE_DISTANCE
    own: dict[str, list[float]] = {"straight": [], "turned": []}
    others: list[float] = []
    for person, row in enumerate(faces):
        for i in np.flatnonzero(~np.isnan(row[:, 0])):
            if i in neutral[:_MEAN_OF]:
                continue
            distances = np.linalg.norm(means - row[i], axis=1)
            own["turned" if kinds[i] == "turn" else "straight"].append(float(distances[person]))
            others += np.delete(distances, person).tolist()
    accepted = {f"own_faces_kept_{name}": float((np.array(values) < limit).mean()) for name, values in own.items()}
    return {**accepted, "other_faces_kept": float((np.array(others) < limit).mean())}


def measure(people: int, bank: str) -> dict[str, Any]:
    """Return precision and recall of each word, and face matching rates."""
    first = 42_000 + (HELDOUT_PEOPLE if bank == "heldout" else 0)
    renderer = Renderer(_SIZE_PX)
    found = [_person(renderer, first + i) for i in range(people)]
    kinds, predicted = np.concatenate([k for k, _, _ in found]), np.concatenate([s for _, s, _ in found])
    words = {}
    for word in WORDS:
        right = float(((predicted == word) & (kinds == word)).sum())
        words[word] = {"precision": right / max((predicted == word).sum(), 1), "recall": right / (kinds == word).sum()}
    none = np.isin(kinds, ("neutral", "talk", "turn"))
    faces = np.stack([f for _, _, f in found])
    known = not np.isnan(faces).all()
    return {
        "people": people,
        "bank": bank,
        "words": words,
        "none_named_right": float((predicted[none] == "neutral").mean()),
        **(_faces(found[0][0], faces) if known else {}),
    }


def _segments(recording: Path, truth: Path) -> Iterator[tuple[str, str]]:
    """Yield the rendered emotion of each segment of a recording's clips, and the expression in its caption."""
    config = CurationConfig(scorers=ScorerConfig(disabled=tuple(scorer.name for scorer in SCORERS)))
    analysis = analyse(recording.parent, source_of(recording), config)
    emotions = np.load(truth)["emotion"]
    labelled, no_frames = label_source(analysis, None, config.states), np.zeros((0, 0, 0, 3), np.uint8)
    whole = Crop(x=0, y=0, side=_SIZE_PX)
    for number, track in enumerate(analysis.tracks):
        for start in range(track.start, track.stop - _CLIP_FRAMES, _CLIP_FRAMES):
            plan = Plan(clip_id="", track=number, start=start, frames=_CLIP_FRAMES, crop=whole, choices=[])
            clip = caption_input(plan, no_frames, analysis, labelled)
            for segment in MeasuredCaptioner().caption(clip).segments:
                span = slice(segment.start, segment.stop)
                shown, counts = np.unique(
                    emotions[start : plan.stop][span][describable_frames(clip.states[span])], return_counts=True
                )
                if "expression" in segment.fields and counts.max() > _MOST * counts.sum():
                    yield str(shown[counts.argmax()]), segment.fields["expression"].value[0]


def in_conversations(conversations: int, bank: Literal["heldout", "train"]) -> dict[str, float]:
    """Return how often captions of people who talk and listen name the rendered emotion."""
    config = PerformerConfig(
        conversations=conversations, seconds_per_conversation=_TALK_S, two_shots=False, size_px=_SIZE_PX,
        seed=_TALK_SEED, bank=bank,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        made = render_corpus(Path(home) / "media", config, NoProgress(), Path(home) / "truth")
        found = [
            pair for one in made for pair in _segments(one.file, Path(home) / "truth" / f"{one.file.stem}.npz")
            if pair[0] in RENDERED
        ]  # fmt: skip
    right = np.array([word in RENDERED[shown] for shown, word in found])
    calm, named = np.array([shown == "neutral" for shown, _ in found]), np.array([w != "neutral" for _, w in found])
    return {
        "segments": len(found),
        "calm_right": float(right[calm].mean()),
        "named_right": float(right[named].sum() / max(named.sum(), 1)),
        "shown_named": float(right[~calm].sum() / max((~calm).sum(), 1)),
    }


def main() -> None:
    """Print a table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument(
        "--conversations", type=int, default=4, help="conversations of 20 s with two people each; 0 = none"
    )
    parser.add_argument("--bank", choices=("heldout", "train"), default="heldout")
    parser.add_argument("--json", action="store_true", help="print the line of JSON only")
    options = parser.parse_args()
    found = measure(options.people, options.bank)
    if options.conversations:
        found["conversations"] = in_conversations(options.conversations, options.bank)
    if not options.json:
        for word, rates in found["words"].items():
            print(f"{word:10s} precision {rates['precision']:.2f}  recall {rates['recall']:.2f}")
        for name in ("none_named_right", "own_faces_kept_straight", "own_faces_kept_turned", "other_faces_kept"):
            if name in found:
                print(f"{name:26s} {found[name]:.3f}")
        for name, value in found.get("conversations", {}).items():
            print(f"conversations: {name:11s} {value:.2f}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
