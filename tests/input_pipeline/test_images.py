"""Decoding is complete or an error; geometry is what it says. Pillow is the independent decoder."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from edits import DEPTHS, edited
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.errors import CorruptImageError, DataError
from input_pipeline.images import (
    ImageOptions,
    check_complete,
    decode,
    evaluation_box,
    image_shape,
    limits,
    load,
    random_box,
    resize,
)

Image = pytest.importorskip("PIL.Image")  # comes with matplotlib


def smooth(height=109, width=89, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 6, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(pixels, kind="JPEG", mode="RGB", **settings):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **settings)
    return buffer.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


ENCODED = {
    "baseline": encode(smooth(), quality=90),
    "no subsampling": encode(smooth(), subsampling=0),
    "progressive": encode(smooth(), progressive=True),
    "grey": encode(smooth(), mode="L"),
    "cmyk": encode(smooth(), mode="CMYK"),
    "png": encode(smooth(), "PNG"),
    "grey png": encode(smooth(), "PNG", mode="L"),
    "palette png": encode(smooth(), "PNG", mode="P"),
    "transparent png": encode(smooth(), "PNG", mode="RGBA"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_kind_becomes_rgb(name):
    pixels = decode(ENCODED[name])
    assert pixels.shape == (109, 89, 3)
    assert pixels.dtype == np.uint8
    # Decoders may differ in chroma upsampling; a swapped channel or an inverted ink is far outside.
    difference = np.abs(pixels.astype(int) - pillow(ENCODED[name]))
    assert difference.mean() < 1.0
    assert difference.max() <= 12


@pytest.mark.parametrize("shortest", [None, 1, 40])
@pytest.mark.parametrize("name", ENCODED)
def test_a_truncated_image_is_always_an_error(name, shortest):
    data = ENCODED[name]
    decode(data, shortest=shortest)
    for length in {*range(64), *range(64, len(data), 37), *range(len(data) - 16, len(data))}:
        with pytest.raises(CorruptImageError):
            decode(data[:length], shortest=shortest)


def test_every_single_truncation_point_of_a_small_jpeg():
    data = encode(smooth(24, 20))
    for length in range(len(data)):
        with pytest.raises(CorruptImageError):
            load(data[:length], ImageOptions(8))


def png(chunk_data, width=5, height=4):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", chunk_data) + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + bytes(range(15 * i, 15 * i + 15)) for i in range(4))


def test_a_png_whose_chunks_are_whole_but_whose_pixels_are_not():
    np.testing.assert_array_equal(
        decode(png(zlib.compress(ROWS))).reshape(4, 15),
        np.frombuffer(ROWS, np.uint8).reshape(4, 16)[:, 1:],
    )
    for pixels in (b"", zlib.compress(ROWS[:30]), zlib.compress(ROWS)[:-4], zlib.compress(ROWS)[:-1] + b"x"):
        with pytest.raises(CorruptImageError):
            decode(png(pixels))


def test_a_flipped_bit_in_a_png_is_found():
    data = bytearray(ENCODED["png"])
    data[len(data) // 2] ^= 1
    with pytest.raises(CorruptImageError, match="checksum"):
        decode(bytes(data))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ENCODED)
def test_no_edit_of_an_image_ends_in_a_traceback(name, depth):
    @settings(max_examples=depth)
    @given(edited(ENCODED[name]))
    def read(data):
        try:
            pixels = load(data, ImageOptions(16))
        except CorruptImageError:
            return
        assert pixels.shape == (16, 16, 3)

    read()


def test_colours_sampled_in_an_unusual_way_are_refused():
    data = bytearray(ENCODED["baseline"])
    data[data.index(b"\xff\xc0") + 11] = 0x14  # of the first component: once across, four times down
    with pytest.raises(CorruptImageError, match="sampled"):
        decode(bytes(data))


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(50), b"<html>not found</html>", b"\xff\xd8\xff"])
def test_what_is_no_image_is_named_so(data):
    with pytest.raises(CorruptImageError):
        decode(data)


def test_an_absurd_size_is_refused_before_memory_is_asked_for():
    with pytest.raises(CorruptImageError, match=str(1 << 28)):
        decode(png(zlib.compress(ROWS), width=2**30, height=2**30))


def test_the_largest_size_is_the_user_s_choice(monkeypatch):
    monkeypatch.setenv("WSCA_IMAGE_PIXELS", str(109 * 89 - 1))
    limits.cache_clear()
    try:
        with pytest.raises(CorruptImageError, match="109 x 89 pixels, more than 9700 in all"):
            decode(ENCODED["baseline"])
    finally:
        monkeypatch.undo()
        limits.cache_clear()
    assert decode(ENCODED["baseline"]).shape == (109, 89, 3)


def test_the_error_names_the_image():
    with pytest.raises(CorruptImageError, match=r"archive: image 7\.jpg: the JPEG does not decode in full"):
        check_complete(ENCODED["baseline"][:-40], "archive: image 7.jpg")


def test_scaled_decoding_keeps_the_promised_size_and_looks_alike():
    data = encode(smooth(400, 300), quality=95)
    for shortest in (1, 30, 75, 100, 150, 151, 299, 300, 500):
        pixels = decode(data, shortest=shortest)
        assert min(pixels.shape[:2]) >= min(shortest, 300)
    assert decode(data, shortest=60).shape[0] < 200  # it really was scaled
    whole = resize(decode(data), 32).astype(int)
    # An eighth of 300 columns is 37.5: the last one is half a column, a shift of at most 1 %.
    assert np.abs(load(data, ImageOptions(32)) - whole).mean() < 6.0


def test_header_sizes():
    assert image_shape(ENCODED["baseline"]) == (109, 89)
    assert image_shape(ENCODED["png"]) == (109, 89)
    assert image_shape(np.zeros((3, 4, 3), np.uint8)) == (3, 4)


def test_shrinking_averages_areas():
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    blocks = image.reshape(8, 8, 8, 6, 3).mean((1, 3))
    assert np.abs(resize(image, 8) - blocks).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("shape", [(8, 8), (20, 30), (4, 5), (40, 3), (3, 40)])
def test_resizing_a_flat_image_leaves_it_flat_and_writes_where_told(shape):
    out = np.zeros((2, 8, 8, 3), np.uint8)
    result = resize(np.full((*shape, 3), 77, np.uint8), 8, out[1])
    assert (out[1] == 77).all()
    assert (result == 77).all()
    assert not out[0].any()


def test_a_mixed_resize_averages_along_the_shrinking_side():
    stripes = np.zeros((64, 4, 3), np.uint8)
    stripes[::2] = 200  # too fine for 8 rows: only averaging gives an even grey
    np.testing.assert_array_equal(resize(stripes, 8), 100)


def test_evaluation_views():
    assert evaluation_box(10, 6, "stretch") == (0, 0, 10, 6)
    assert evaluation_box(10, 6, "crop") == (2, 0, 6, 6)
    assert evaluation_box(5, 8, "crop") == (0, 1, 5, 5)
    image = np.zeros((10, 6, 3), np.uint8)
    image[2:8] = 255
    assert (load(image, ImageOptions(6, fit="crop")) == 255).all()
    assert not (load(image, ImageOptions(6)) == 255).all()


FRACTION = st.floats(0, 1, exclude_max=True)


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["stretch", "crop"]),
    st.tuples(FRACTION, FRACTION, FRACTION, FRACTION),
)
def test_random_windows_lie_inside(height, width, fit, draw):
    options = ImageOptions(8, fit, crop_scale=(0.1, 1.0), crop_ratio=(0.5, 2.0))
    box = random_box(height, width, options, np.array(draw))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert box.height >= 1
    assert box.width >= 1


def test_random_windows_have_the_requested_areas_shapes_and_places():
    options = ImageOptions(8, crop_scale=(0.25, 0.64), crop_ratio=(0.8, 1.25))
    draws = np.random.default_rng(0).random((4000, 4))
    boxes = np.array([random_box(1000, 600, options, draw) for draw in draws], float)
    top, left, height, width = boxes.T
    area, ratio = height * width / 600_000, (width / 600) / (height / 1000)
    assert area.min() == pytest.approx(0.25, abs=0.01)
    assert area.max() == pytest.approx(0.64, abs=0.01)
    assert area.mean() == pytest.approx(0.445, abs=0.01)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.01)
    assert ratio.max() == pytest.approx(1.25, abs=0.02)
    assert (top / (1000 - height)).mean() == pytest.approx(0.5, abs=0.02)
    assert (left / (600 - width)).mean() == pytest.approx(0.5, abs=0.02)


def test_a_window_of_a_scaled_decode_shows_the_same_as_one_of_the_whole():
    """The window is asked for in the image's own pixels, whatever the decoder's scale."""
    pixels = smooth(480, 360)
    options = ImageOptions(24, crop_scale=(0.2, 0.6), crop_ratio=(0.7, 1.4))
    data = simplejpeg.encode_jpeg(pixels, quality=95)
    right, wrong = [], []
    for draw in np.random.default_rng(1).random((30, 4)):
        expected = load(pixels, options, draw).astype(int)
        right.append(np.abs(load(data, options, draw) - expected).mean())
        wrong.append(np.abs(load(data, options, 1 - draw) - expected).mean())
    # A window of 30 decoded pixels is rounded to whole ones, which moves a blotch's edge by a pixel or two.
    assert np.mean(right) < 6.0
    assert np.mean(wrong) > 30.0


def test_a_small_window_is_cut_from_enough_pixels():
    """A window of a tenth of the area must not be cut from an image decoded for the whole view."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    pixels = cv2.resize(pixels, (480, 480), interpolation=cv2.INTER_NEAREST)
    options = ImageOptions(60, crop_scale=(0.1, 0.1))
    draw = np.array([0.5, 0.5, 0.3, 0.3])
    data = simplejpeg.encode_jpeg(pixels, quality=98, colorsubsampling="444")
    assert np.abs(load(data, options, draw).astype(int) - load(pixels, options, draw)).mean() < 4.0


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 0},
        {"size": 8, "fit": "squeeze"},
        {"size": 8, "crop_scale": (0.0, 1.0)},
        {"size": 8, "crop_scale": (0.9, 0.5)},
        {"size": 8, "crop_scale": (0.5, 1.5)},
        {"size": 8, "crop_ratio": (-1.0, 1.0)},
    ],
)
def test_impossible_options_are_refused(settings):
    with pytest.raises(DataError, match="images: "):
        ImageOptions(**settings)
