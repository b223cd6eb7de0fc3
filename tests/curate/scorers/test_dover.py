"""The DOVER scorer: both views against closed forms, and a network read from a file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from components.curate.config import ScorerConfig
from components.curate.scorers import describe_scorers, make_scorers, validate_optional
from components.curate.scorers.dover import Dover, detail_view, whole_view
from lpm_model.digests import file_digest


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message: a number, or bytes with their length before them."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def network(path: Path, inputs: tuple[str, str] = ("aes_view", "tech_view"), clips: int = 4) -> Path:
    """An ONNX file (onnx.proto, operators 13) with DOVER's inputs: each output is the mean of an input by clip."""

    def tensor(name: str, shape: tuple[int, ...]) -> bytes:
        dims = b"".join(field(1, field(1, size)) for size in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    axes = field(1, "axes") + b"".join(field(8, axis) for axis in (1, 2, 3, 4)) + field(20, 7)
    keep = field(1, "keepdims") + field(3, 0) + field(20, 2)
    graph = b""
    for name, out in zip(inputs, ("a", "t"), strict=True):
        graph += field(1, field(1, name) + field(2, out) + field(4, "ReduceMean") + field(5, axes) + field(5, keep))
    graph += field(2, "means")
    for name, count in zip(inputs, (1, clips), strict=True):
        graph += field(11, tensor(name, (count, 3, 32, 224, 224)))
    graph += field(12, tensor("a", (1,))) + field(12, tensor("t", (clips,)))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)))
    return path


def rgb(value: int = 128, side: int = 256, frames: int = 49) -> np.ndarray:
    return np.full((frames, side, side, 3), value, np.uint8)


MEAN_OF_GREY = float(np.mean((128 - np.array([123.675, 116.28, 103.53])) / [58.395, 57.12, 57.375]))


def test_dover_scores_come_from_the_file_and_are_fused_as_published(tmp_path: Path) -> None:
    """The file's means are sums of five million numbers in float32."""
    path = network(tmp_path / "dover.onnx")
    config = ScorerConfig(extra=("dover",), dover=str(path))
    scorer = next(one for one in make_scorers(config) if isinstance(one, Dover))
    clip: Any = SimpleNamespace(rgb=rgb())
    fused = (MEAN_OF_GREY - 0.1107) / 0.07355 * 0.6104 + (MEAN_OF_GREY + 0.08285) / 0.03774 * 0.3896
    assert scorer.score(clip) == {
        "dover": pytest.approx(1 / (1 + np.exp(-fused)), abs=1e-3),
        "dover_technical": pytest.approx(MEAN_OF_GREY, abs=2e-3),
        "dover_aesthetic": pytest.approx(MEAN_OF_GREY, abs=2e-3),
    }
    assert describe_scorers(config)[-1]["weights_sha256"] == file_digest(path)


def test_whole_view_spans_the_clip() -> None:
    clip = rgb(frames=96)
    clip[:] = np.arange(96, dtype=np.uint8)[:, None, None, None]
    view = whole_view(clip)
    assert view.shape == (1, 3, 32, 224, 224)
    shown = view[0, 0, :, 0, 0] * 58.395 + 123.675
    np.testing.assert_allclose(np.diff(shown), 3, atol=1e-3)
    assert shown[-1] > 90


def test_detail_view_keeps_the_centre_of_each_cell_unscaled() -> None:
    """448 px: cells of 64 px, of which only the middle 32 are white."""
    inside = (np.arange(448) % 64 >= 16) & (np.arange(448) % 64 < 48)
    clip = rgb(0, side=448)
    clip[:, np.outer(inside, inside)] = 255
    view = detail_view(clip, 4)
    assert view.shape == (4, 3, 32, 224, 224)
    assert view.min() == view[:, 0].min()
    np.testing.assert_allclose(view[:, 0], (255 - 123.675) / 58.395, atol=1e-4)


@pytest.mark.parametrize("side", [128, 224, 300])
def test_detail_view_accepts_any_size(side: int) -> None:
    assert detail_view(rgb(side=side, frames=25), 3).shape == (3, 3, 32, 224, 224)


def test_missing_and_wrong_networks_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file: give DOVER as ONNX"):
        describe_scorers(ScorerConfig(extra=("dover",)))
    other = network(tmp_path / "other.onnx", inputs=("x", "y"))
    with pytest.raises(ValueError, match="is not DOVER: give DOVER as ONNX"):
        make_scorers(ScorerConfig(extra=("dover",), dover=str(other)))
    film = tmp_path / "some.mp4"
    film.write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"scorers\.dover is '.*some\.mp4', which is not an ONNX file.*: give DOVER"):
        validate_optional(ScorerConfig(extra=("dover",), dover=str(film)))
