"""Still images: centre crop, scaling, and refusals that name the remedy."""

import av
import numpy as np
import pytest

from serving.media.image import centre_square, read_image
from tests.serving.media.files import tone, write_text, write_wav


@pytest.fixture
def png(tmp_path):
    """An 80 x 40 px PNG with a red centre square."""
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 20:60] = (200, 30, 30)
    with av.open(str(tmp_path / "a.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 80, 40, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    return tmp_path / "a.png"


def test_read_image_returns_the_scaled_centre_square(png):
    image = read_image(png, 16)
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - (200, 30, 30)).max() <= 2


def test_read_image_rejects_what_is_not_an_image(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_image(tmp_path / "b.png", 16)
    with pytest.raises(ValueError, match="not a readable image"):
        read_image(write_text(tmp_path / "t.png"), 16)
    with pytest.raises(ValueError, match="not an image"):
        read_image(write_wav(tmp_path / "s.wav", tone(0.1)), 16)


def test_read_image_rejects_too_many_pixels(png, monkeypatch):
    monkeypatch.setattr("serving.media.image.MAX_IMAGE_PX", 1000)
    with pytest.raises(ValueError, match="80x40 px"):
        read_image(png, 16)


def test_centre_square_rejects_grey_images():
    with pytest.raises(ValueError, match="convert it to RGB"):
        centre_square(np.zeros((4, 4), np.uint8), 4)
