"""From a picture to a network's input."""

import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
from matplotlib import cbook

import fpgasim as fs
from fpgasim.errors import ImageError, InputError, UnknownNameError

WHOLE = fs.zoo.Preprocessing(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def colour(rgb, size=(20, 10), mode="RGB"):
    return PIL.Image.new(mode, size, rgb)


@pytest.fixture
def photograph():
    return str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))


def test_a_path_bytes_an_image_and_an_array_give_the_same_input(photograph, tmp_path):
    with PIL.Image.open(photograph) as image:
        pixels = np.asarray(image)
        expected = fs.zoo.preprocess("efficientnet_lite0", image)
    assert expected.shape == (1, 3, 224, 224)
    assert expected.dtype == np.float32
    assert expected.flags.c_contiguous
    path = tmp_path / "copy.jpg"
    with open(photograph, "rb") as file:
        path.write_bytes(file.read())
    for same in (photograph, path, path.read_bytes(), pixels):
        np.testing.assert_array_equal(fs.zoo.preprocess("efficientnet_lite0", same), expected)


@pytest.mark.parametrize(
    ("name", "white", "orange"),
    [
        ("resnet50", [2.2489, 2.4286, 2.6400], [2.2489, 0.2052, -1.8044]),
        ("resnet50_v1", [131.32, 138.221, 151.061], [131.32, 11.221, -103.939]),
        ("resnet50_slim", [131.32, 138.221, 151.061], [131.32, 11.221, -103.939]),
        ("efficientnet_lite0", [1, 1, 1], [1, 1 / 128, -127 / 128]),
    ],
)
def test_each_network_normalises_channels_as_it_was_trained(name, white, orange):
    for rgb, expected in (((255, 255, 255), white), ((255, 128, 0), orange)):
        x = fs.zoo.preprocess(name, colour(rgb, (300, 400)))
        assert x.shape == (1, 3, 224, 224)
        np.testing.assert_allclose(x[0, :, 100, 100], expected, atol=1e-4)


def test_stretching_takes_the_whole_picture_in():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40:] = 255
    x = fs.zoo.preprocess(WHOLE, pixels)
    assert x[0, 0, :, 0].tolist() == [0] * 8
    assert x[0, 0, :, -1].tolist() == [255] * 8


def test_a_center_crop_takes_the_middle_of_the_longer_side():
    """80 x 40 becomes 16 x 8, of which columns 4 to 11 are kept: pixels 20 to 59."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :20], pixels[:, 60:] = 100, 200
    crop = dataclasses.replace(WHOLE, resize="center_crop", shorter_side=8)
    assert fs.zoo.preprocess(crop, pixels)[0, 0, 4, 1:-1].max() == 0
    assert fs.zoo.preprocess(WHOLE, pixels)[0, 0, 4, [0, -1]].tolist() == [100, 200]
    turned = fs.zoo.preprocess(crop, np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    np.testing.assert_array_equal(turned, fs.zoo.preprocess(crop, pixels).transpose(0, 1, 3, 2))


def test_the_usual_crop_is_what_pillow_makes_of_256_and_224(photograph):
    x = fs.zoo.preprocess("resnet50", photograph)
    with PIL.Image.open(photograph) as image:
        assert image.size == (512, 600)
        resized = image.resize((256, 300), PIL.Image.Resampling.BILINEAR)
    pixels = np.asarray(resized.crop((16, 38, 240, 262)), np.float64) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(x[0], expected.transpose(2, 0, 1), atol=1e-5)


def test_channels_may_be_taken_in_reverse():
    x = fs.zoo.preprocess(dataclasses.replace(WHOLE, channels="BGR"), colour((1, 2, 3)))
    assert x[0, :, 0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (colour(77, mode="L"), [77, 77, 77]),
        (colour((10, 20, 30, 0), mode="RGBA"), [10, 20, 30]),
        (colour((50, 0), mode="LA"), [50, 50, 50]),
        (colour((0, 255, 255, 0), mode="CMYK"), [255, 0, 0]),
        (colour((10, 20, 30)).convert("P"), [10, 20, 30]),
        (colour(1, mode="1"), [255, 255, 255]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_other_colours_become_rgb(image, rgb):
    x = fs.zoo.preprocess(WHOLE, encoded(image, "TIFF"))
    np.testing.assert_allclose(x[0, :, 3, 3], rgb, atol=26 if image.mode == "P" else 0)
    np.testing.assert_array_equal(fs.zoo.preprocess(WHOLE, image), x)


def test_a_palette_with_transparency_raises_no_warning():
    image = colour((10, 20, 30)).quantize(4)
    np.testing.assert_array_equal(
        fs.zoo.preprocess(WHOLE, encoded(image, transparency=bytes([0, 128, 255]))), fs.zoo.preprocess(WHOLE, image)
    )


def test_the_orientation_in_exif_is_ignored():
    image = PIL.Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(
        fs.zoo.preprocess(WHOLE, encoded(image, exif=exif)), fs.zoo.preprocess(WHOLE, encoded(image))
    )


def test_a_jpeg_cut_anywhere_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    whole = encoded(PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)), "JPEG")
    path = tmp_path / "cut.jpg"
    for length in range(0, len(whole) - 64, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"cut\.jpg' (is empty|is none of JPEG|cannot be read)"):
            fs.zoo.preprocess(WHOLE, path)


def test_postscript_is_not_given_to_ghostscript():
    with pytest.raises(ImageError, match="is none of JPEG, PNG, GIF, BMP, WEBP, TIFF, PPM"):
        fs.zoo.preprocess(WHOLE, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


@pytest.mark.parametrize("size", [(65_536, 1), (1, 65_536)])
def test_a_picture_with_a_side_too_long_is_refused_before_it_is_decoded(size):
    data = encoded(PIL.Image.new("1", size), "PNG")
    for preprocessing in (WHOLE, "resnet50_slim"):
        with pytest.raises(ImageError, match=f"has {size[0]}x{size[1]} pixels; at most 65535 a side"):
            fs.zoo.preprocess(preprocessing, data)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", r"image of 0 bytes is empty"),
        (b"no picture at all", "image of 17 bytes is none of JPEG, PNG, GIF, BMP, WEBP, TIFF, PPM; give a JPEG or PNG"),
        (3.5, "image of type float; give a path"),
        (np.zeros((4, 4, 3), np.float32), "array of float32 .4, 4, 3.; an array must be uint8"),
        (np.zeros((3, 4, 4), np.uint8), "array of uint8 .3, 4, 4."),
        (np.zeros((0, 4, 3), np.uint8), "array of uint8 .0, 4, 3."),
        (PIL.Image.new("I;16", (4, 4)), "mode 'I;16', more than 8 bits a channel"),
        (PIL.Image.new("F", (4, 4)), "mode 'F'"),
        (encoded(PIL.Image.new("I;16", (4, 4))), "mode 'I;16'"),
    ],
)
def test_what_is_no_picture_is_refused(image, message):
    with pytest.raises(ImageError, match=message):
        fs.zoo.preprocess(WHOLE, image)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg' cannot be read: No such file or directory"):
        fs.zoo.preprocess(WHOLE, tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        fs.zoo.preprocess(WHOLE, tmp_path)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_picture_that_would_not_fit_in_memory_is_refused(side):
    """Once above Pillow's limit, where it would only warn, and once above twice the limit."""
    bomb = encoded(PIL.Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match="at most 89478485 are taken"):
        fs.zoo.preprocess(WHOLE, bomb)


def test_a_thin_picture_that_resizing_would_blow_up_is_refused():
    with pytest.raises(ImageError, match="makes 256x512000000 pixels; at most 89478485 are taken"):
        fs.zoo.preprocess("resnet50", np.zeros((2_000_000, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "center_crop"}, "shorter_side=None; center_crop needs it"),
        ({"shorter_side": 9}, "shorter_side=9"),
        ({"resize": "center_crop", "shorter_side": 7}, "size=8; must be at least 1 and at most shorter_side=7"),
        ({"size": 0}, "size=0"),
        ({"std": (1.0, 0.0, 1.0)}, "std=.1.0, 0.0, 1.0.; each must be above 0"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(WHOLE, **change)


def test_a_list_gives_a_batch(photograph):
    images = [photograph, colour((1, 2, 3)), np.full((9, 9, 3), 7, np.uint8)]
    batch = fs.zoo.preprocess("resnet50", images)
    assert batch.shape == (3, 3, 224, 224)
    assert batch.flags.c_contiguous
    for image, x in zip(images, batch, strict=True):
        np.testing.assert_array_equal(fs.zoo.preprocess("resnet50", image)[0], x)
    with pytest.raises(InputError, match="an empty list of pictures; give at least one"):
        fs.zoo.preprocess("resnet50", [])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision", [2.2489, 0.2052, -1.8044]),
        ("torchvision_v2", [2.2489, 0.2052, -1.8044]),
        ("timm_bicubic", [2.2489, 0.2052, -1.8044]),
        ("timm_a1", [2.2489, 0.2052, -1.8044]),
        ("keras", [-103.939, 11.221, 131.32]),
        ("keras_densenet", [2.2489, 0.2052, -1.8044]),
        ("azure", [131.32, 11.221, -103.939]),
        ("azure_densenet121", [2.23244, 0.190757, -1.766963]),
        ("azure_ssd_vgg", [131.32, 11.221, -103.939]),
    ],
)
def test_preprocessings_of_other_libraries_have_names(name, expected):
    x = fs.zoo.preprocess(name, colour((255, 128, 0), (300, 400)))
    size = 300 if name == "azure_ssd_vgg" else 224
    assert x.shape == (1, 3, size, size)
    np.testing.assert_allclose(x[0, :, 100, 100], expected, atol=1e-4)


def test_every_named_preprocessing_is_tested_and_differs_from_the_others(photograph):
    inputs = {name: fs.zoo.preprocess(name, photograph) for name in fs.zoo.PREPROCESSINGS}
    assert len({x.tobytes() for x in inputs.values()}) == len(inputs) == 9


def test_keras_takes_the_nearest_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 448, 3), np.uint8)
    x = fs.zoo.preprocess("keras", pixels)
    rows = ((np.arange(224) + 0.5) * 300 / 224).astype(int)
    expected = pixels[rows, 1::2, ::-1] - np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_array_equal(x[0], expected.transpose(2, 0, 1))


def test_an_unknown_network_is_named():
    with pytest.raises(UnknownNameError, match="no network 'lenet'; there are resnet50"):
        fs.zoo.preprocess("lenet", colour((1, 2, 3)))
