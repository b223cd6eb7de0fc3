"""The ROI cache: the same pixels as decoding again, bounded in size, gone after errors."""

import dataclasses
import json
import resource
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from components.curate.config import CurationConfig, StateConfig
from components.curate.step import curate
from components.curate.video.crops import Crop, plan_crop
from components.curate.video.decode import video_frames
from components.curate.video.faces import FEATURES, POINTS, FaceFinder
from components.curate.video.frame import DecodedFrame, Scalers
from components.curate.video.identity import FACE_EVERY, FACE_PX, face_crop
from components.curate.video.roi_cache import RoiCache, RoiCacheWriter
from lpm_model.digests import dataset_digest
from lpm_model.progress import NoProgress
from tests.curate.corpus import as_frame, make_raw, write_video

FRAMES = 30


def planar(size: tuple[int, int], seed: int, reduced: bool = False, name: str = "yuv420p") -> DecodedFrame:
    """A noisy frame as a decoder returns it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3)).astype(np.uint8)
    rgb = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=name)
    return Scalers().decoded(frame, reduced)


def face(x: float, y: float, height: float) -> np.ndarray:
    """Features of an upright face whose box has its centre at (x, y)."""
    row = np.zeros(len(FEATURES), np.float32)
    row[:4] = x - 0.4 * height, y - 0.5 * height, x + 0.4 * height, y + 0.5 * height
    return row


def walks(seed: int, size: tuple[int, int], people: int) -> list[list[np.ndarray]]:
    """Faces that move and change in size, by frame; measured on every second one."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(0.1, 0.35) * min(size)
    middles = rng.uniform(0.3, 0.7, (people, 2)) * size
    out: list[list[np.ndarray]] = []
    for number in range(FRAMES):
        if number % 2:
            out.append(out[-1])
            continue
        middles = middles + rng.normal(0, 0.1 * height, middles.shape)
        out.append([face(*middle, height * rng.uniform(0.9, 1.1)) for middle in middles])
    return out


@pytest.mark.parametrize(
    ("size", "people", "size_px", "reduced"),
    [((640, 360), 1, 64, False), ((1280, 720), 1, 64, True), ((1280, 720), 2, 128, True), ((1920, 1080), 1, 128, True),
     ((512, 512), 1, 128, False), ((322, 242), 1, 64, False), ((854, 480), 2, 96, True), ((96, 96), 1, 128, False)],
)  # fmt: skip
def test_cached_crops_equal_crops_of_the_source(
    tmp_path: Path, size: tuple[int, int], people: int, size_px: int, reduced: bool
) -> None:
    config = CurationConfig(size_px=size_px)
    faces = walks(3 * size[0] + people, size, people)
    with RoiCacheWriter(tmp_path, config, 1e9) as writer:
        for number, rows in enumerate(faces):
            writer.push(number, planar(size, number, reduced), rows)
    cache = RoiCache(tmp_path, FRAMES)
    covered = 0
    for start in range(0, FRAMES, 6):
        for person in range(people):
            boxes = np.stack([rows[person][:4] for rows in faces[start : start + 6]])
            others = [np.stack([rows[1 - person][:4] for rows in faces[start : start + 6]])] if people > 1 else []
            crop = plan_crop(boxes, others, size, config)
            mask = cache.covers_span(crop, start, start + 6, size_px)
            covered += int(mask.sum())
            for number in start + np.flatnonzero(mask)[::3]:
                assert cache.covers(crop, int(number), size_px)
                found = crop.cut(cache.frame(int(number)), size_px)
                assert np.array_equal(found, crop.cut(planar(size, int(number)), size_px))
            face_square = face_crop(faces[start][person], size)
            side = min(face_square.side, FACE_PX)
            assert start % FACE_EVERY == 0
            assert cache.covers(face_square, start, side)
            assert np.array_equal(face_square.cut(cache.frame(start), side), face_square.cut(planar(size, start), side))
    assert covered >= 0.8 * FRAMES * people
    far = Crop(x=0, y=0, side=size[1])
    if size[0] != size[1] and not cache.covers(far, 1, size_px):
        with pytest.raises(ValueError, match="is not cached"):
            far.cut(cache.frame(1), size_px)


@pytest.mark.parametrize("size", [(640, 480), (540, 540)])
def test_large_face_caches_the_largest_square(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = [face(size[0] / 2, 240, 300)]
    with RoiCacheWriter(tmp_path, CurationConfig(size_px=64), 1e9) as writer:
        writer.push(0, planar(size, 0), rows)
    crop = plan_crop(rows[0][None, :4], [], size, CurationConfig(size_px=64))
    assert crop.side == size[1]
    assert RoiCache(tmp_path, 1).covers_span(crop, 0, 1, 64).all()


def test_duplicate_frames_take_no_more_space(tmp_path: Path) -> None:
    frames, rows = [planar((640, 360), seed) for seed in range(2)], [face(320, 180, 100)]
    for repeats in (1, 5):
        with RoiCacheWriter(tmp_path / str(repeats), CurationConfig(), 1e9) as writer:
            for number in range(2 * repeats):
                writer.push(6 * number, frames[number // repeats], rows)
    once, often = ((tmp_path / name / "roi_cache.yuv").read_bytes() for name in "15")
    assert once == often
    crop = plan_crop(rows[0][None, :4], [], (640, 360), CurationConfig())
    cache = RoiCache(tmp_path / "5", 60)
    for number in range(10):
        assert np.array_equal(crop.cut(cache.frame(6 * number), 128), crop.cut(frames[number // 5], 128))


def test_lost_faces_and_other_pixel_formats_are_not_cached(tmp_path: Path) -> None:
    rows = [face(320, 180, 100)]
    with RoiCacheWriter(tmp_path, CurationConfig(), 1e9) as writer:
        for number in range(40):
            writer.push(number, planar((640, 360), 0), rows if number < 10 else [])
    crop = plan_crop(rows[0][None, :4], [], (640, 360), CurationConfig())
    assert np.flatnonzero(RoiCache(tmp_path, 40).covers_span(crop, 0, 40, 128)).tolist() == list(range(22))
    for name in ("yuv444p", "rgb24"):
        with RoiCacheWriter(tmp_path, CurationConfig(), 1e9) as writer:
            writer.push(0, planar((640, 360), 0, name=name), rows)
        assert not list(tmp_path.iterdir())
        assert not RoiCache(tmp_path, 40).covers(crop, 0, 128)


def test_error_deletes_the_cache_and_size_limit_keeps_its_beginning(tmp_path: Path) -> None:
    def stops_after_one() -> None:
        with RoiCacheWriter(tmp_path, CurationConfig(), 1e9) as writer:
            writer.push(0, planar((640, 360), 0), [face(320, 180, 100)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stops_after_one()
    assert not list(tmp_path.iterdir())
    with RoiCacheWriter(tmp_path, CurationConfig(), 500_000) as writer:
        for number in range(40):
            writer.push(number, planar((640, 360), 0), [face(320, 180, 100)])
    assert 500_000 <= (tmp_path / "roi_cache.yuv").stat().st_size < 800_000
    crop = plan_crop(face(320, 180, 100)[None, :4], [], (640, 360), CurationConfig())
    covered = RoiCache(tmp_path, 40).covers_span(crop, 0, 40, 128)
    assert covered[: covered.sum()].all()
    assert 0 < covered.sum() < 40


@pytest.mark.parametrize(("height", "frames"), [(40, 20), (10, 1)])
def test_full_disk_discards_only_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, height: float, frames: int
) -> None:
    """The error comes when a frame is written; with very little data, when the file is closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with RoiCacheWriter(tmp_path / "video", CurationConfig(), 1e9) as writer:
            for number in range(frames):
                writer.push(number, planar((320, 240), 0), [face(160, 120, height)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "video").iterdir())
    assert caplog.text.count("video: no ROI cache") == 1


@pytest.mark.parametrize("enlarged", [False, True])
def test_dataset_is_equal_with_and_without_roi_cache(
    sides: list[Path], config: CurationConfig, tmp_path: Path, enlarged: bool
) -> None:
    """Frames of the original video are too small to be cached."""
    video = sides[0]
    if enlarged:
        small = [frame.rgb for number, frame, _ in video_frames(video, config.limits) if number < 150]
        square = [cv2.resize(image, (720, 720), interpolation=cv2.INTER_CUBIC) for image in small]
        large = [cv2.copyMakeBorder(image, 0, 0, 280, 280, cv2.BORDER_REPLICATE) for image in square]
        video = write_video(tmp_path / "large.mp4", large)
    raw = make_raw(tmp_path / "raw", [video], conversation_id=None, camera=None)
    lenient = dataclasses.replace(
        config,
        min_retention=0.0,
        require_audio=False,
        require_reference=False,
        states=StateConfig(min_discard_s=100.0),  # the enlarged video is silent, and mouths move
        thresholds={"min_confidence": None, "max_inset_ratio": None},
        size_px=64,
    )
    decoded, digests = [], set()
    for number, room_gb in enumerate((8.0, 2e-4, 0.0) if enlarged else (8.0, 0.0)):
        dataset = tmp_path / str(number)
        curate(raw, dataset, dataclasses.replace(lenient, roi_cache_gb=room_gb), NoProgress())
        digests.add(dataset_digest(dataset))
        decoded.append("decoding" in json.loads((dataset / "timing.json").read_text())["clips"]["parts_s"])
    assert len(digests) == 1
    assert decoded == ([False, True, True] if enlarged else [True, True])


def test_face_points_are_in_pixels_of_the_source_at_any_size(sides: list[Path], config: CurationConfig) -> None:
    small = next(frame.rgb for _, frame, _ in video_frames(sides[0], config.limits))
    for factor in (1, 10):
        large = cv2.resize(small, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        frame = av.VideoFrame.from_ndarray(large, format="rgb24").reformat(format="yuv420p")
        row = FaceFinder(1).find(Scalers().decoded(frame, reduced=True))[0]
        points = row[POINTS].reshape(-1, 2)
        assert np.all((points > row[:2]) & (points < row[2:4]))
        assert row[3] - row[1] > 0.2 * len(large)
    assert as_frame(small).size == small.shape[1::-1]
