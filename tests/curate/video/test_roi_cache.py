"""What the first pass keeps of pictures: the same pixels as decoding again, and nothing beyond its time and room."""

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
from components.curate.video.frame import Picture, Scalers
from components.curate.video.identity import FACE_EVERY, FACE_PX, face_square
from components.curate.video.roi_cache import Cutouts, CutoutWriter
from lpm_model.digests import dataset_digest
from lpm_model.progress import NoProgress
from tests.curate.corpus import as_picture, make_raw, write_video

FRAMES = 30


def planar(size: tuple[int, int], seed: int, reduced: bool = False, name: str = "yuv420p") -> Picture:
    """A noisy picture as a decoder gives it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3)).astype(np.uint8)
    rgb = cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=name)
    return Scalers().picture(frame, reduced)


def face(x: float, y: float, height: float) -> np.ndarray:
    """Features of an upright face with its box's middle at (x, y)."""
    row = np.zeros(len(FEATURES), np.float32)
    row[:4] = x - 0.4 * height, y - 0.5 * height, x + 0.4 * height, y + 0.5 * height
    return row


def walks(seed: int, size: tuple[int, int], people: int) -> list[list[np.ndarray]]:
    """Faces of every frame that wander and change in size; measured on every second one."""
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
def test_what_is_kept_has_the_pixels_of_the_source(
    tmp_path: Path, size: tuple[int, int], people: int, size_px: int, reduced: bool
) -> None:
    config = CurationConfig(size_px=size_px)
    faces = walks(3 * size[0] + people, size, people)
    with CutoutWriter(tmp_path, config, 1e9) as writer:
        for number, rows in enumerate(faces):
            writer.push(number, planar(size, number, reduced), rows)
    kept = Cutouts(tmp_path, FRAMES)
    held = 0
    for start in range(0, FRAMES, 6):
        for person in range(people):
            boxes = np.stack([rows[person][:4] for rows in faces[start : start + 6]])
            others = [np.stack([rows[1 - person][:4] for rows in faces[start : start + 6]])] if people > 1 else []
            crop = plan_crop(boxes, others, size, config)
            there = kept.hold_all(crop, start, start + 6, size_px)
            held += int(there.sum())
            for number in start + np.flatnonzero(there)[::3]:
                assert kept.hold(crop, int(number), size_px)
                found = crop.cut(kept.picture(int(number)), size_px)
                assert np.array_equal(found, crop.cut(planar(size, int(number)), size_px))
            square = face_square(faces[start][person], size)
            side = min(square.side, FACE_PX)
            assert start % FACE_EVERY == 0
            assert kept.hold(square, start, side)
            assert np.array_equal(square.cut(kept.picture(start), side), square.cut(planar(size, start), side))
    assert held >= 0.8 * FRAMES * people
    far = Crop(x=0, y=0, side=size[1])
    if size[0] != size[1] and not kept.hold(far, 1, size_px):
        with pytest.raises(ValueError, match="was not kept"):
            far.cut(kept.picture(1), size_px)


@pytest.mark.parametrize("size", [(640, 480), (540, 540)])
def test_of_a_large_face_the_largest_square_is_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = [face(size[0] / 2, 240, 300)]
    with CutoutWriter(tmp_path, CurationConfig(size_px=64), 1e9) as writer:
        writer.push(0, planar(size, 0), rows)
    crop = plan_crop(rows[0][None, :4], [], size, CurationConfig(size_px=64))
    assert crop.side == size[1]
    assert Cutouts(tmp_path, 1).hold_all(crop, 0, 1, 64).all()


def test_a_picture_that_is_shown_again_takes_no_more_room(tmp_path: Path) -> None:
    shown, rows = [planar((640, 360), seed) for seed in range(2)], [face(320, 180, 100)]
    for repeats in (1, 5):
        with CutoutWriter(tmp_path / str(repeats), CurationConfig(), 1e9) as writer:
            for number in range(2 * repeats):
                writer.push(6 * number, shown[number // repeats], rows)
    once, often = ((tmp_path / name / "cutouts.yuv").read_bytes() for name in "15")
    assert once == often
    crop = plan_crop(rows[0][None, :4], [], (640, 360), CurationConfig())
    kept = Cutouts(tmp_path / "5", 60)
    for number in range(10):
        assert np.array_equal(crop.cut(kept.picture(6 * number), 128), crop.cut(shown[number // 5], 128))


def test_nothing_is_kept_of_a_face_long_gone_nor_of_other_formats(tmp_path: Path) -> None:
    rows = [face(320, 180, 100)]
    with CutoutWriter(tmp_path, CurationConfig(), 1e9) as writer:
        for number in range(40):
            writer.push(number, planar((640, 360), 0), rows if number < 10 else [])
    crop = plan_crop(rows[0][None, :4], [], (640, 360), CurationConfig())
    assert np.flatnonzero(Cutouts(tmp_path, 40).hold_all(crop, 0, 40, 128)).tolist() == list(range(22))
    for name in ("yuv444p", "rgb24"):
        with CutoutWriter(tmp_path, CurationConfig(), 1e9) as writer:
            writer.push(0, planar((640, 360), 0, name=name), rows)
        assert not list(tmp_path.iterdir())
        assert not Cutouts(tmp_path, 40).hold(crop, 0, 128)


def test_an_error_leaves_no_file_and_little_room_the_beginning(tmp_path: Path) -> None:
    def stops_after_one() -> None:
        with CutoutWriter(tmp_path, CurationConfig(), 1e9) as writer:
            writer.push(0, planar((640, 360), 0), [face(320, 180, 100)])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stops_after_one()
    assert not list(tmp_path.iterdir())
    with CutoutWriter(tmp_path, CurationConfig(), 500_000) as writer:
        for number in range(40):
            writer.push(number, planar((640, 360), 0), [face(320, 180, 100)])
    assert 500_000 <= (tmp_path / "cutouts.yuv").stat().st_size < 800_000
    crop = plan_crop(face(320, 180, 100)[None, :4], [], (640, 360), CurationConfig())
    held = Cutouts(tmp_path, 40).hold_all(crop, 0, 40, 128)
    assert held[: held.sum()].all()
    assert 0 < held.sum() < 40


@pytest.mark.parametrize(("height", "frames"), [(40, 20), (10, 1)])
def test_a_full_disk_costs_what_was_kept_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, height: float, frames: int
) -> None:
    """It is noticed when a frame is written; of very little, when the file is closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with CutoutWriter(tmp_path / "film", CurationConfig(), 1e9) as writer:
            for number in range(frames):
                writer.push(number, planar((320, 240), 0), [face(160, 120, height)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "film").iterdir())
    assert caplog.text.count("film: no pictures are kept") == 1


@pytest.mark.parametrize("enlarged", [False, True])
def test_the_dataset_is_the_same_whether_pictures_are_kept_or_decoded_again(
    sides: list[Path], config: CurationConfig, tmp_path: Path, enlarged: bool
) -> None:
    """Those of the film as it is are too small to be kept."""
    film = sides[0]
    if enlarged:
        small = [picture.rgb for number, picture, _ in video_frames(film, config.limits) if number < 150]
        square = [cv2.resize(picture, (720, 720), interpolation=cv2.INTER_CUBIC) for picture in small]
        large = [cv2.copyMakeBorder(picture, 0, 0, 280, 280, cv2.BORDER_REPLICATE) for picture in square]
        film = write_video(tmp_path / "large.mp4", large)
    raw = make_raw(tmp_path / "raw", [film], conversation_id=None, camera=None)
    lenient = dataclasses.replace(
        config,
        min_retention=0.0,
        require_audio=False,
        require_reference=False,
        states=StateConfig(min_discard_s=100.0),  # the enlarged film is silent, and mouths move
        thresholds={"min_confidence": None, "max_inset_ratio": None},
        size_px=64,
    )
    decoded, digests = [], set()
    for number, room in enumerate((8.0, 2e-4, 0.0) if enlarged else (8.0, 0.0)):
        dataset = tmp_path / str(number)
        curate(raw, dataset, dataclasses.replace(lenient, keep_pictures_gb=room), NoProgress())
        digests.add(dataset_digest(dataset))
        decoded.append("decoding" in json.loads((dataset / "timing.json").read_text())["clips"]["parts_s"])
    assert len(digests) == 1
    assert decoded == ([False, True, True] if enlarged else [True, True])


def test_points_of_a_face_are_pixels_of_the_source_however_large(sides: list[Path], config: CurationConfig) -> None:
    small = next(picture.rgb for _, picture, _ in video_frames(sides[0], config.limits))
    for factor in (1, 10):
        large = cv2.resize(small, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        frame = av.VideoFrame.from_ndarray(large, format="rgb24").reformat(format="yuv420p")
        row = FaceFinder(1).find(Scalers().picture(frame, reduced=True))[0]
        points = row[POINTS].reshape(-1, 2)
        assert np.all((points > row[:2]) & (points < row[2:4]))
        assert row[3] - row[1] > 0.2 * len(large)
    assert as_picture(small).size == small.shape[1::-1]
