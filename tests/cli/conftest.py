"""Running the command in this process, and files for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL.Image
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

from fpgasim.cli import main

Fpgasim = Callable[..., Result]


@pytest.fixture
def fpgasim() -> Fpgasim:
    """Runs `fpgasim ARGS` and gives click's Result; an exception that escapes fails the test."""

    def run(*args: object, exit_code: int = 0, env: dict[str, str] | None = None) -> Result:
        result = CliRunner(env=env).invoke(main, [str(a) for a in args], prog_name="fpgasim")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def refused(fpgasim: Fpgasim) -> Callable[..., str]:
    """Runs `fpgasim ARGS`, which must end with `exit_code` and one line on standard error; gives its message."""

    def run(*args: object, exit_code: int, env: dict[str, str] | None = None) -> str:
        result = fpgasim(*args, exit_code=exit_code, env=env)
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("fpgasim: error: ")
        return result.stderr.removeprefix("fpgasim: error: ").rstrip("\n")

    return run


def classifier(classes: int = 10) -> onnx.ModelProto:
    """A picture classifier, `image` (N, 3, 32, 32) to `probabilities`, whose Softmax the engine cannot compute."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((16, 3, 3, 3)) * 0.3,
        "b": rng.standard_normal(16) * 0.1,
        "fc": rng.standard_normal((16, classes)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["conv"], name="conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "fc"], ["logits"], name="fc"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    return _model(nodes, weights, ("image", ["N", 3, 32, 32]), ("probabilities", ["N", classes]))


def perceptron() -> onnx.ModelProto:
    """`x` (N, 16) to `y` (N, 4): a model that takes no picture."""
    weights = {"w": np.random.default_rng(1).standard_normal((16, 4))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="matmul")]
    return _model(nodes, weights, ("x", ["N", 16]), ("y", ["N", 4]))


def _model(nodes: list[onnx.NodeProto], weights: dict[str, Any], source: Any, result: Any) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(source[0], onnx.TensorProto.FLOAT, source[1])],
        [helper.make_tensor_value_info(result[0], onnx.TensorProto.FLOAT, result[1])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The file of `classifier()`."""
    onnx.save(classifier(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """The file of `perceptron()`."""
    onnx.save(perceptron(), tmp_path / "vectors.onnx")
    return tmp_path / "vectors.onnx"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small JPEG."""
    pixels = np.random.default_rng(2).integers(0, 256, (40, 50, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"
