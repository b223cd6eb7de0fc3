"""Decoding onto the 24 fps clock: odd and variable frame rates, rotation, gaps in the audio."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from components.curate.config import SourceLimits
from components.curate.labels.speech import SILENCE_DB, loudness_db, speech_probability
from components.curate.video.decode import audio_track, video_frames
from components.curate.video.frame import DecodedFrame, Scalers
from components.curate.video.probe import SourceRejected, probe
from components.curate.video.reduced import reduced
from components.curate.video.shots import ShotFinder
from tests.curate.corpus import as_frame, write_video
from tests.curate.hostile import rotated

LIMITS = SourceLimits()


def grey(value: int) -> np.ndarray:
    return np.full((64, 64, 3), value, np.uint8)


def grey_levels(path: Path) -> list[int]:
    """Mean grey value of every frame in tens."""
    return [round(frame.rgb.mean() / 10) for _, frame, _ in video_frames(path, LIMITS)]


def test_12_fps_source_duplicates_every_frame(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "slow.mp4", [grey(10 * (n + 1)) for n in range(12)], [n / 12 for n in range(12)], fps=12
    )
    values = grey_levels(path)
    assert len(values) >= 22
    assert max(values.count(v) for v in set(values)) <= 3
    new = [fresh for _, _, fresh in video_frames(path, LIMITS)]
    assert sum(new) == 12


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("size", [(96, 64), (1280, 720)])
def test_rotation_metadata_is_applied(tmp_path: Path, quarters: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(quarters)
    coarse = rng.integers(0, 255, (6, 9, 3)).astype(np.uint8)
    plain = write_video(tmp_path / "plain.mp4", [cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)] * 3)
    rotated(tmp_path / "rotated.mp4", plain, quarters)
    flat = next(frame for _, frame, _ in video_frames(plain, LIMITS))
    found = next(frame for _, frame, _ in video_frames(tmp_path / "rotated.mp4", LIMITS, reduced=True))
    upright = np.rot90(flat.rgb, -quarters)
    assert found.size == upright.shape[1::-1]
    assert found.whole is not None
    assert np.abs(found.region(10, 20, 40, 30).astype(float) - upright[20:50, 10:50]).mean() < 2
    small = cv2.resize(upright, found.rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.rgb.astype(float) - small).mean() < 3


def test_48_fps_source_keeps_every_second_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "fast.mp4", [grey(2 * n) for n in range(96)], [n / 48 for n in range(96)], fps=48)
    means = [frame.rgb.mean() for _, frame, _ in video_frames(path, LIMITS)]
    assert len(means) == 48
    np.testing.assert_allclose(means, [4 * n for n in range(48)], atol=6)


def test_variable_frame_rate_keeps_its_speed(tmp_path: Path) -> None:
    times = [n / 24 for n in range(24)] + [1.0, 1.5, 2.0]
    path = write_video(tmp_path / "vfr.mp4", [grey(5 * (n + 1)) for n in range(27)], times)
    means = [frame.rgb.mean() for _, frame, _ in video_frames(path, LIMITS)]
    assert len(means) == 49
    assert abs(means[12] - 65) < 4
    assert abs(means[34] - 130) < 5
    assert abs(means[44] - 135) < 5


def test_audio_track_is_resampled_and_placed_by_time_stamp(tmp_path: Path) -> None:
    path = write_video(tmp_path / "tone.mp4", [grey(90)] * 48, tone_from_s=1.0)
    track = audio_track(path, 48, LIMITS)
    assert track.shape == (48_000,)
    assert np.abs(track[:23_500]).max() < 700
    loud = track[24_500:46_000].astype(float)
    spectrum = np.abs(np.fft.rfft(loud * np.hanning(len(loud))))
    assert spectrum.argmax() * 24_000 / len(loud) == pytest.approx(440, abs=2)
    level = loudness_db(track)
    assert level[30] == pytest.approx(-9.0, abs=1.0)
    assert level[10] < -40


def test_silence_has_no_speech_probability() -> None:
    track = np.zeros(24_000, np.int16)
    assert not speech_probability(track).any()
    assert (loudness_db(track) == SILENCE_DB).all()


def test_shot_finder_finds_a_cut() -> None:
    noise = np.random.default_rng(0)
    red, blue = noise.integers(0, 90, (64, 96, 3), np.uint8), noise.integers(150, 255, (64, 96, 3), np.uint8)
    finder = ShotFinder(3.0)
    for number in range(80):
        finder.push(reduced(number, as_frame(red if number < 40 else blue)))
    assert finder.shots() == [(0, 40), (40, 80)]
    assert finder.transitions() == [(40, 40, "cut")]


def test_shot_finder_excludes_dissolves_from_shots() -> None:
    noise = np.random.default_rng(0)
    first, second = (noise.integers(0, 255, (64, 96, 3)).astype(np.float32) for _ in range(2))
    first, second = (cv2.GaussianBlur(image, (0, 0), 9) * 6 % 255 for image in (first, second))
    finder = ShotFinder(3.0)
    for number in range(90):
        weight = min(max((number - 40) / 20, 0.0), 1.0)
        finder.push(reduced(number, as_frame(((1 - weight) * first + weight * second).astype(np.uint8))))
    ((start, stop, kind),) = finder.transitions()
    assert kind == "dissolve"
    assert abs(start - 40) <= 3
    assert abs(stop - 61) <= 3
    assert finder.shots() == [(0, start), (stop, 90)]


def test_probe_rejects_sources_beyond_limits_with_a_reason(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [grey(90)] * 48)
    for limits, reason in (
        (SourceLimits(max_bytes=10), "too_large"),
        (SourceLimits(max_side_px=32), "too_big"),
        (SourceLimits(max_duration_s=1.0), "too_long"),
        (SourceLimits(min_duration_s=5.0), "too_short"),
        (SourceLimits(max_fps=12.0), "too_fast"),
    ):
        with pytest.raises(SourceRejected) as rejection:
            probe(path, limits)
        assert rejection.value.reason == reason
        assert "v.mp4" in str(rejection.value)
    with pytest.raises(SourceRejected, match=r"missing\.mp4: missing"):
        probe(tmp_path / "missing.mp4", LIMITS)


def test_region_equals_the_pixels_of_the_whole_frame() -> None:
    rng = np.random.default_rng(5)
    rgb = cv2.resize(rng.integers(0, 255, (24, 40, 3)).astype(np.uint8), (400, 238), interpolation=cv2.INTER_CUBIC)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    scalers = Scalers()
    whole = DecodedFrame(frame, scalers).rgb
    for x, y, width, height in ((0, 0, 400, 238), (31, 17, 101, 77), (299, 137, 101, 101), (2, 3, 8, 1)):
        region = DecodedFrame(frame, scalers).region(x, y, width, height)
        assert np.array_equal(region, whole[y : y + height, x : x + width])


@pytest.mark.parametrize("side", [150, 256, 301])
def test_downscaled_square_matches_downscaling_after_conversion(side: int) -> None:
    rng = np.random.default_rng(7)
    rgb = cv2.resize(rng.integers(60, 195, (24, 40, 3)).astype(np.uint8), (640, 384), interpolation=cv2.INTER_LINEAR)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    scalers = Scalers()
    for x, y in ((0, 0), (32, 18), (33, 18), (640 - side, 384 - side)):
        region = DecodedFrame(frame, scalers).rgb[y : y + side, x : x + side]
        means = cv2.resize(region, (100, 100), interpolation=cv2.INTER_AREA)
        found = DecodedFrame(frame, scalers).square(x, y, side, 100)
        assert found.shape == (100, 100, 3)
        assert np.abs(found.astype(float) - means).mean() < 2.0


def test_reduced_frame_is_area_averaged() -> None:
    rng = np.random.default_rng(6)
    rgb = cv2.resize(rng.integers(0, 255, (9, 16, 3)).astype(np.uint8), (1280, 720), interpolation=cv2.INTER_CUBIC)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
    decoded = Scalers().decoded(frame, reduced=True)
    for reduced_to in (decoded.rgb, decoded.small(96)):
        height, width = reduced_to.shape[:2]
        means = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        assert np.abs(reduced_to.astype(float) - means).mean() < 3.0
    assert decoded.rgb.shape == (360, 640, 3)
    assert decoded.small(96).shape == (54, 96, 3)


def test_ten_bit_frame_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (72, 128, 3)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p10le")
    scalers, real, converted = Scalers(), Scalers.rgb, []
    monkeypatch.setattr(Scalers, "rgb", lambda self, *given: converted.append(given) or real(self, *given))
    decoded = scalers.decoded(frame, reduced=True)
    region = decoded.region(100, 40, 600, 400)
    assert np.array_equal(decoded.rgb, cv2.resize(real(Scalers(), frame), (640, 360), interpolation=cv2.INTER_AREA))
    assert np.array_equal(region, real(Scalers(), frame)[40:440, 100:700])
    assert len(converted) == 1
