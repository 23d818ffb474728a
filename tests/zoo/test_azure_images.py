"""Azure's preprocessing, bit for bit: as an array, and as an ONNX model.

The hashes are of what azureml.accel.models.utils.preprocess_array itself gave, once, on TensorFlow 2.21.
"""

import dataclasses
import hashlib
import io

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest

import fpgasim as fs
from fpgasim.errors import ImageError, InputError
from fpgasim.zoo.azure_images import AzurePreprocessing

SIZES = [(1, 1), (1, 9), (40, 3), (41, 60), (64, 48), (256, 256), (300, 200), (427, 611), (600, 2), (1000, 7)]


def picture(height, width):
    """The pattern whose hashes stand below."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((7 * y + 13 * x + 29 * c) * (x + 1) % 256).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "options", "shape", "digest"),
    [
        ((37, 53), {}, (224, 224), "59a4deb2d5f763eb"),
        ((53, 37), {"order": "BGR"}, (224, 224), "afb52f38413c0f79"),
        ((300, 200), {"scaling_factor": 0.017}, (224, 224), "f227835c871694bd"),
        ((41, 60), {}, (224, 224), "a6641483130fec7a"),
        (
            (64, 48),
            {"output_height": 300, "output_width": 300, "preserve_aspect_ratio": False},
            (300, 300),
            "3c5aece35ca458d5",
        ),
        ((64, 48), {"output_height": 5, "output_width": 9, "preserve_aspect_ratio": False}, (5, 9), "d591ef4b69c68879"),
        ((90, 70), {"output_height": 200, "output_width": 180}, (200, 200), "4ca0a65b607d1e10"),
        ((90, 70), {"output_height": 300, "output_width": 300}, (256, 256), "c26e4f68c35c2bab"),
        ((1, 1), {}, (224, 224), "b2d3e574a0c35f3c"),
        ((2, 600), {}, (224, 224), "7eac978d40637656"),
    ],
)
def test_every_bit_is_what_azures_sdk_gave(size, options, shape, digest):
    x = fs.zoo.preprocess_azure([picture(*size)], quirks=True, **options)
    assert x.shape == (1, *shape, 3)
    assert x.dtype == np.float32
    assert hashlib.sha256(x.tobytes()).hexdigest().startswith(digest)


def slow_resize(pixels, height, width, rows=None, columns=None):
    """TensorFlow 1's resize_bilinear with align_corners=False, one sample at a time, of these rows and columns."""
    f = np.float32
    rows, columns = rows or range(height), columns or range(width)
    out = np.empty((len(rows), len(columns), 3), f)
    for row, i in enumerate(rows):
        y = f(i) * (f(pixels.shape[0]) / f(height))
        y0 = int(y)
        y1 = min(y0 + 1, pixels.shape[0] - 1)
        for column, j in enumerate(columns):
            x = f(j) * (f(pixels.shape[1]) / f(width))
            x0 = int(x)
            x1 = min(x0 + 1, pixels.shape[1] - 1)
            for c in range(3):
                a, b, d, e = (f(pixels[yy, xx, c]) for yy in (y0, y1) for xx in (x0, x1))
                top = a + (b - a) * (x - f(x0))
                bottom = d + (e - d) * (x - f(x0))
                out[row, column, c] = top + (bottom - top) * (y - f(y0))
    return out


@pytest.mark.parametrize("size", [(1, 1), (5, 40), (41, 23), (20, 20)])
def test_stretching_is_the_slow_loop(size):
    pixels = picture(*size)
    resized = slow_resize(pixels, 12, 20)
    x = fs.zoo.preprocess_azure([pixels], "BGR", 0.5, 12, 20, preserve_aspect_ratio=False)
    expected = (resized - np.array([123.68, 116.779, 103.939], np.float32))[:, :, ::-1] * np.float32(0.5)
    np.testing.assert_array_equal(x[0], expected)


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (7, 7)])
def test_preserving_the_aspect_ratio_cuts_the_middle_from_the_slow_loop(size):
    pixels = picture(*size)
    scale = np.float32(256) / np.float32(min(size))
    height, width = (int(np.float32(side) * scale) for side in size)
    top, left = (height - 21) // 2, (width - 20) // 2
    resized = slow_resize(pixels, height, width, range(top, top + 21), range(left, left + 20))
    expected = resized - np.array([123.68, 116.779, 103.939], np.float32)
    np.testing.assert_array_equal(fs.zoo.preprocess_azure([pixels], "RGB", 1, 21, 20)[0], expected)


def test_a_batch_is_its_pictures_in_order_and_both_layouts():
    stream = io.BytesIO()
    PIL.Image.fromarray(picture(30, 40)).save(stream, "PNG")
    images = [picture(64, 48), stream.getvalue(), PIL.Image.fromarray(picture(9, 9))]
    x = fs.zoo.preprocess_azure(images)
    assert x.shape == (3, 224, 224, 3)
    for image, one in zip(images, x, strict=True):
        np.testing.assert_array_equal(fs.zoo.preprocess_azure([image])[0], one)
    turned = fs.zoo.preprocess_azure(tuple(images), layout="NCHW")
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(turned, x.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(fs.zoo.preprocess("azure", images), turned)
    np.testing.assert_array_equal(fs.zoo.preprocess_azure(np.array([images[1]] * 2, object)), x[[1, 1]])
    assert fs.zoo.preprocess_azure([]).shape == (0, 224, 224, 3)


def test_quirks_show_only_where_the_aspect_ratio_is_preserved_and_the_size_is_unusual():
    pixels = [picture(90, 70)]

    def both(*arguments):
        return fs.zoo.preprocess_azure(pixels, *arguments), fs.zoo.preprocess_azure(pixels, *arguments, quirks=True)

    for same in (("RGB", 1, 224, 224), ("RGB", 1, 100, 100), ("RGB", 1, 300, 280, False)):
        np.testing.assert_array_equal(*both(*same))
    right, wrong = both("RGB", 1, 200, 180)
    assert right.shape == (1, 200, 180, 3)
    assert wrong.shape == (1, 200, 200, 3)
    np.testing.assert_array_equal(right, wrong[:, :, 10:190])
    right, wrong = both("RGB", 1, 300, 260)
    assert right.shape == (1, 300, 260, 3)
    assert wrong.shape == (1, 256, 256, 3)


def test_a_side_that_rounding_leaves_at_255_is_cut_at_256_without_quirks_only():
    pixels = [picture(41, 60)]
    assert fs.zoo.preprocess_azure(pixels, "RGB", 1, 256, 256).shape == (1, 256, 256, 3)
    with pytest.raises(ImageError, match="becomes 255x374, too small to cut 256x256 from; quirks=False would do"):
        fs.zoo.preprocess_azure(pixels, "RGB", 1, 256, 256, quirks=True)


def test_an_extreme_picture_costs_no_more_memory_than_its_output():
    """Resized whole it would have 256 x 512,000,000 pixels."""
    x = fs.zoo.preprocess_azure([np.full((2_000_000, 1, 3), 7, np.uint8)])
    np.testing.assert_array_equal(x[0, 0, 0], np.float32(7) - np.array([123.68, 116.779, 103.939], np.float32))
    assert (x == x[0, 0, 0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "GRB"}, "order='GRB'; can only construct in RGB or BGR order"),
        ({"output_height": 0}, "output_height=0; must be a whole number from 1 to 8192"),
        ({"output_width": 2.5}, "output_width=2.5; must be a whole number"),
        ({"output_width": 10**6}, "output_width=1000000"),
        ({"scaling_factor": True}, "scaling_factor=True; must be a finite number above 0"),
        ({"scaling_factor": 0}, "scaling_factor=0; must be a finite number above 0"),
        ({"scaling_factor": float("nan")}, "scaling_factor=nan"),
        ({"layout": "NWHC"}, "layout='NWHC'; NHWC or NCHW would do"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fs.zoo.preprocess_azure([picture(4, 4)], **options)


def test_numpys_numbers_are_numbers():
    x = fs.zoo.preprocess_azure([picture(9, 9)], "RGB", np.float32(0.5), np.int64(20), np.int64(30))
    np.testing.assert_array_equal(x, fs.zoo.preprocess_azure([picture(9, 9)], "RGB", 0.5, 20, 30))


@pytest.mark.parametrize("images", [picture(4, 4), b"bytes", "path.jpg", 3, None])
def test_pictures_come_in_a_list(images):
    with pytest.raises(InputError, match="give a list of pictures"):
        fs.zoo.preprocess_azure(images)


def test_a_bad_picture_in_a_batch_is_named():
    with pytest.raises(ImageError, match="image of 4 bytes seems to be no picture"):
        fs.zoo.preprocess_azure([picture(4, 4), b"junk"])


SPECS = [
    AzurePreprocessing(),
    AzurePreprocessing("BGR", 0.017, 200, 180),
    AzurePreprocessing(output_height=300, output_width=280),
    AzurePreprocessing(output_height=200, output_width=180, quirks=True),
    AzurePreprocessing(output_height=300, output_width=300, preserve_aspect_ratio=False),
    AzurePreprocessing("BGR", 2.5, 7, 5, preserve_aspect_ratio=False),
]


@pytest.mark.parametrize(("spec", "layout"), [*((spec, "NCHW") for spec in SPECS), (SPECS[1], "NHWC")])
def test_the_onnx_form_has_every_bit_of_the_array_form(spec, layout):
    model = fs.zoo.preprocessing_model(spec, layout)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for size in SIZES:
        expected = fs.zoo.preprocess_azure([picture(*size)], layout=layout, **dataclasses.asdict(spec))
        got = session.run(None, {"picture": picture(*size)})[0]
        np.testing.assert_array_equal(got, expected, err_msg=str(size))


def test_the_onnx_form_runs_as_a_plan_for_pictures_of_any_size():
    session = fs.compile(fs.partition(fs.load(fs.zoo.preprocessing_model(AzurePreprocessing())), "bw_a10", "msfp16"))
    for size in SIZES[3:5]:
        got = session.run({"picture": picture(*size)})["input"]
        np.testing.assert_array_equal(got, fs.zoo.preprocess("azure", picture(*size)))


def test_the_onnx_form_knows_two_layouts():
    with pytest.raises(InputError, match="layout='CHW'"):
        fs.zoo.preprocessing_model(AzurePreprocessing(), "CHW")


def test_what_a_network_asks_of_its_preprocessing_is_there():
    assert AzurePreprocessing().size == 224
    assert AzurePreprocessing(scaling_factor=0.5).std == (2, 2, 2)
    with pytest.raises(InputError, match="the output is 10x20; a square one would do"):
        _ = AzurePreprocessing(output_height=10, output_width=20).size
