"""Pictures as the very pixels of TensorFlow's decode_png, and what is refused.

The JPEGs beside this file and the hashes were made once: Pillow encoded, TensorFlow 2.21 decoded.
"""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import simplejpeg

import fpgasim as fs
from fpgasim.errors import ImageError

JPEGS = Path(__file__).parent / "jpegs"


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(mode="RGB", size=(10, 8), seed=0):
    channels = len(PIL.Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return PIL.Image.frombytes(mode, size, values.tobytes())


def png(raw_rows, width, depth, colour_type):
    """A PNG from its unfiltered rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(raw_rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in raw_rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("baseline", "b64e923dc238dc5e"),
        ("progressive", "176abb678aca9da3"),
        ("grey", "eed878ab59fda392"),
        ("cmyk", "a27c7abfacb4f3bb"),
    ],
)
def test_a_jpeg_has_the_pixels_that_tensorflow_gives_it(name, pixels):
    path = JPEGS / f"{name}.jpg"
    decoded = fs.zoo.decode(path)
    assert decoded.shape == (17, 24, 3)
    assert decoded.dtype == np.uint8
    assert hashlib.sha256(decoded.tobytes()).hexdigest().startswith(pixels)
    with PIL.Image.open(path) as image:
        off = np.abs(np.asarray(image.convert("RGB")).astype(int) - decoded).max()
    assert 0 < off <= 3  # Pillow takes libjpeg's exact transform


def test_inks_that_adobe_did_not_write_are_not_inverted():
    data = (JPEGS / "cmyk.jpg").read_bytes()
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    inks = simplejpeg.decode_jpeg(data, "CMYK", fastdct=True).astype(int)
    np.testing.assert_array_equal(fs.zoo.decode(data), inks[..., :3] * inks[..., 3:] // 255)
    np.testing.assert_array_equal(fs.zoo.decode(plain), (255 - inks[..., :3]) * (255 - inks[..., 3:]) // 255)


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6], ids=["grey", "RGB", "grey+alpha", "RGBA"])
def test_of_16_bits_a_channel_the_upper_8_are_kept(colour_type):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    values = np.random.default_rng(colour_type).integers(0, 2**16, (6, 5, channels)).astype(">u2")
    upper = (values >> 8).astype(np.uint8)
    expected = upper[:, :, :3] if channels > 2 else np.repeat(upper[:, :, :1], 3, axis=2)
    data = png([row.tobytes() for row in values], 5, 16, colour_type)
    np.testing.assert_array_equal(fs.zoo.decode(data), expected)


def test_alpha_and_transparent_colours_of_a_png_are_dropped():
    image = noise("RGBA")
    np.testing.assert_array_equal(fs.zoo.decode(encoded(image, "PNG")), np.asarray(image)[:, :, :3])
    grey = noise("LA")
    np.testing.assert_array_equal(fs.zoo.decode(encoded(grey, "PNG")), np.asarray(grey)[:, :, [0, 0, 0]])
    image = noise()
    marked = encoded(image, "PNG", transparency=image.getpixel((0, 0)))
    np.testing.assert_array_equal(fs.zoo.decode(marked), np.asarray(image))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_shallow_grey_is_spread_over_0_to_255(depth):
    levels = np.arange(2**depth)
    bits = "".join(format(level, f"0{depth}b") for level in levels).ljust(8, "0")
    row = int(bits, 2).to_bytes(len(bits) // 8)
    expected = np.repeat((levels * 255 // (2**depth - 1))[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(fs.zoo.decode(png([row], 2**depth, depth, 0)), expected)


def test_a_palette_gives_its_colours():
    image = noise().quantize(9)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(fs.zoo.decode(encoded(image, "PNG")), expected)
    np.testing.assert_array_equal(fs.zoo.decode(encoded(image, "PNG", transparency=bytes([0, 9, 255]))), expected)
    np.testing.assert_array_equal(fs.zoo.decode(encoded(image, "GIF")), expected)


def test_an_animation_gives_its_first_frame():
    first, second = noise(seed=1).quantize(8), noise(seed=2).quantize(8)
    expected = np.asarray(first.convert("RGB"))
    for kind in ("GIF", "PNG"):
        data = encoded(first, kind, save_all=True, append_images=[second], duration=100)
        np.testing.assert_array_equal(fs.zoo.decode(data), expected)


def test_what_is_transparent_in_a_gif_is_black():
    image = PIL.Image.new("P", (4, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((3, 1), 0)
    pixels = fs.zoo.decode(encoded(image, "GIF", transparency=0))
    assert pixels[0, 0].tolist() == [40, 50, 60]
    assert pixels[1, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_orientation_in_exif_is_ignored(kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(
        fs.zoo.decode(encoded(noise(), kind, exif=exif)), fs.zoo.decode(encoded(noise(), kind))
    )


def test_pixels_and_pillow_images_are_taken_as_they_are():
    image = noise(size=(1, 1))
    for same in (image, np.asarray(image), encoded(image, "PNG")):
        np.testing.assert_array_equal(fs.zoo.decode(same), np.asarray(image))


def test_stray_bytes_between_the_segments_of_a_jpeg_are_passed_over():
    """libjpeg only warns of them, and cameras leave some."""
    whole = (JPEGS / "baseline.jpg").read_bytes()
    for marker in (b"\xff\xdb", b"\xff\xc0", b"\xff\xda"):
        at = whole.index(marker)
        np.testing.assert_array_equal(fs.zoo.decode(whole[:at] + b"\1\2\3" + whole[at:]), fs.zoo.decode(whole))
    np.testing.assert_array_equal(fs.zoo.decode(whole + b"junk at the end"), fs.zoo.decode(whole))


@pytest.mark.parametrize("name", ["baseline", "progressive", "grey", "cmyk"])
def test_a_jpeg_cut_anywhere_is_refused(name):
    whole = (JPEGS / f"{name}.jpg").read_bytes()
    for length in range(1, len(whole) - 1, 7):
        with pytest.raises(ImageError, match=f"image of {length} bytes"):
            fs.zoo.decode(whole[:length])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_png_or_gif_cut_anywhere_is_refused(kind):
    whole = encoded(noise().quantize(16), kind)
    for length in range(1, len(whole) - 2, 3):  # a GIF may do without the two bytes that end its data and itself
        with pytest.raises(ImageError, match=f"image of {length} bytes"):
            fs.zoo.decode(whole[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image of 0 bytes is empty"),
        (b"no picture at all", "image of 17 bytes seems to be no picture; a JPEG, PNG or GIF would do"),
        (encoded(noise(), "BMP"), "seems to be a BMP"),
        (encoded(noise(), "WEBP"), "seems to be a WEBP"),
        (encoded(noise(), "TIFF"), "seems to be a TIFF"),
        (b"\xff\xd8\xff", "image of 3 bytes cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"IEND\xaeB`\x82", "image of 16 bytes (cannot be read|is none of JPEG)"),
        (b"GIF89a", "image of 6 bytes (cannot be read|is none of JPEG)"),
        (3.5, "image of type float; give a path"),
        (np.zeros((2, 2, 4), np.uint8), "array of uint8 .2, 2, 4.; an array must be uint8 of shape"),
    ],
)
def test_what_is_no_jpeg_png_or_gif_is_refused_by_name(data, message):
    with pytest.raises(ImageError, match=message):
        fs.zoo.decode(data)


def test_a_file_is_named(tmp_path):
    path = tmp_path / "picture.bmp"
    noise().save(path)
    with pytest.raises(ImageError, match=r"picture\.bmp' seems to be a BMP"):
        fs.zoo.decode(path)
    with pytest.raises(ImageError, match=r"none\.jpg' cannot be read: No such file"):
        fs.zoo.decode(tmp_path / "none.jpg")


def test_bombs_are_refused_before_they_are_decoded():
    png_bomb = bytearray(png([b""], 20_000, 1, 0))
    png_bomb[20:24] = (20_000).to_bytes(4)
    png_bomb[29:33] = zlib.crc32(png_bomb[12:29]).to_bytes(4)
    gif_bomb = bytearray(encoded(noise().quantize(4), "GIF"))
    gif_bomb[6:10] = b"\xff\xff\xff\xff"
    jpeg_bomb = bytearray((JPEGS / "baseline.jpg").read_bytes())
    at = jpeg_bomb.index(b"\xff\xc0")
    jpeg_bomb[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    for bomb in (png_bomb, gif_bomb, jpeg_bomb):
        with pytest.raises(ImageError, match="at most 89478485 are taken"):
            fs.zoo.decode(bytes(bomb))
