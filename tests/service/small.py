"""Networks of a few bytes and pictures for the tests of the service."""

import io

import numpy as np
import onnx.parser
import PIL.Image

import fpgasim as fs

PICTURES = fs.zoo.AzurePreprocessing(output_height=8, output_width=8, preserve_aspect_ratio=False)


def model(text):
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {text}')


def linear(inputs="x", outputs="y", rows=4, columns=3):
    """(N, rows) times a matrix of 1, 2, 3, …"""
    weights = ", ".join(str(float(i)) for i in range(1, rows * columns + 1))
    return fs.load(
        model(f"""linear (float[N, {rows}] {inputs}) => (float[N, {columns}] {outputs})
            <float[{rows}, {columns}] w = {{{weights}}}> {{ {outputs} = MatMul ({inputs}, w) }}""")
    )


def featurizer():
    """Pictures of 8x8, (N, 3, 8, 8), to features (N, 4, 1, 1): a convolution, ReLU and an average."""
    weights = ", ".join(f"{((i * 7) % 11 - 5) / 50:.3f}" for i in range(4 * 3 * 3 * 3))
    return fs.load(
        model(f"""featurizer (float[N, 3, 8, 8] input) => (float[N, 4, 1, 1] features)
            <float[4, 3, 3, 3] w = {{{weights}}}> {{
                c = Conv <pads = [1, 1, 1, 1]> (input, w)
                r = Relu (c)
                features = GlobalAveragePool (r)
            }}""")
    )


def classifier():
    """Features (N, 4, 1, 1) to the probabilities of 3 classes."""
    weights = ", ".join(f"{(i % 5 - 2) / 4:.2f}" for i in range(12))
    return fs.load(
        model(f"""classifier (float[N, 4, 1, 1] features) => (float[N, 3] probabilities)
            <float[4, 3] w = {{{weights}}}> {{
                f = Flatten (features)
                l = MatMul (f, w)
                probabilities = Softmax <axis = 1> (l)
            }}""")
    )


def two_outputs():
    return fs.load(model("two (float[N, 2] x) => (float[N, 2] a, float[N, 2] b) { a = Relu (x) b = Sigmoid (x) }"))


def picture(seed=0, size=(20, 30), format="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def strings(*items):
    return np.array([*items, None], object)[:-1]
