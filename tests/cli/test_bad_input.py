"""Whatever is wrong with the input is one line that names the thing, and the exit code of its kind; no traceback."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fpgasim.errors import STATUS, DeviceError, ImageError, InputError, ModelError, WeightsError

INPUT, MODEL, WEIGHTS, IMAGE, DEVICE = (
    STATUS[cls].exit_code for cls in (InputError, ModelError, WeightsError, ImageError, DeviceError)
)
COMMANDS = ("run", "partition", "simulate")


def arguments(command, model, photo):
    return (command, model, "--image", photo) if command == "run" else (command, model)


@pytest.fixture(params=COMMANDS)
def attempt(request, refused, photo):
    """Runs each command on a model with further options; gives the message."""
    return lambda model, *options, exit_code: refused(
        *arguments(request.param, model, photo), *options, exit_code=exit_code
    )


def test_a_missing_file(attempt, tmp_path):
    path = tmp_path / "none.onnx"
    assert attempt(path, exit_code=MODEL).startswith(f"no model '{path}': there is no such file, and the networks")


def test_a_misspelt_network(attempt):
    assert "the networks of the zoo are resnet50" in attempt("resnet5", exit_code=MODEL)


@pytest.mark.parametrize("part", [0, 0.5, 0.98], ids=["empty", "half", "almost"])
def test_a_truncated_model(attempt, model, part):
    data = model.read_bytes()
    model.write_bytes(data[: int(len(data) * part)])
    assert str(model) in attempt(model, exit_code=MODEL)


def test_a_file_that_is_no_model(attempt, photo):
    assert str(photo) in attempt(photo, exit_code=MODEL)


def test_a_folder(attempt, tmp_path):
    assert str(tmp_path) in attempt(tmp_path, exit_code=MODEL)


def edited(model, edit):
    proto = onnx.load(model)
    edit(proto)
    onnx.save(proto, model)
    return model


def test_an_operator_that_nobody_knows(attempt, model):
    def edit(proto):
        proto.graph.node[1].op_type = "Relux"

    assert "Relux" in attempt(edited(model, edit), exit_code=MODEL)


def test_weights_that_are_nan(attempt, model):
    def edit(proto):
        weights = numpy_helper.to_array(proto.graph.initializer[0]).copy()
        weights[0] = np.nan
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))

    message = attempt(edited(model, edit), exit_code=WEIGHTS)
    assert "'w'" in message
    assert "NaN" in message


def test_weights_outside_the_models_folder(attempt, model):
    def edit(proto):
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")

    assert "../../etc/passwd" in attempt(edited(model, edit), exit_code=MODEL)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--device", "bw_x"), INPUT, "no device 'bw_x'; there are bw_s5, bw_a10, bw_s10"),
        (("--format", "int3"), INPUT, "no format 'int3'; there are msfp11"),
        (("--objective", "speed"), INPUT, "no objective 'speed'; there are latency, coverage"),
        (("--device", "bw_s5", "--format", "msfp16"), DEVICE, "format 'msfp16' has blocks of 16, which do not divide"),
        (("--weights", "w.npz"), INPUT, "--weights w.npz: "),
    ],
)
def test_options_that_name_nothing_or_do_not_fit(attempt, model, options, code, message):
    assert attempt(model, *options, exit_code=code).startswith(message)


@pytest.mark.parametrize("option", ["device", "format", "objective", "weights"])
def test_an_option_that_a_saved_plan_has_decided(fpgasim, attempt, model, tmp_path, option):
    saved = tmp_path / "plan"
    fpgasim("partition", model, "--save", saved)
    message = attempt(saved, f"--{option}", "latency", exit_code=INPUT)
    assert message == f"--{option} latency: the plan '{saved}' has decided that; leave --{option} out"


def test_a_saved_plan_that_is_cut(fpgasim, attempt, model, tmp_path):
    saved = tmp_path / "plan"
    fpgasim("partition", model, "--save", saved)
    saved.write_bytes(saved.read_bytes()[:-100])
    assert attempt(saved, exit_code=MODEL).startswith(f"plan file '{saved}' is damaged: ")


def test_weights_of_a_zoo_network_that_are_missing_or_broken(refused, tmp_path):
    absent, broken = tmp_path / "none.npz", tmp_path / "broken.pth"
    broken.write_bytes(b"not a checkpoint")
    for path in (absent, broken):
        assert str(path) in refused("simulate", "efficientnet_lite0", "--weights", path, exit_code=WEIGHTS)


def test_trained_weights_that_were_not_fetched(refused, tmp_path):
    environment = {"FPGASIM_CACHE_DIR": str(tmp_path)}
    message = refused("simulate", "resnet50", "--weights", "pretrained", exit_code=WEIGHTS, env=environment)
    assert message.endswith("`fpgasim zoo fetch resnet50` fetches them")


def test_a_jpeg_of_0_bytes(refused, model, tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    message = refused("run", model, "--image", tmp_path / "empty.jpg", exit_code=IMAGE)
    assert message == f"image '{tmp_path / 'empty.jpg'}' is empty (0 bytes)"


def test_a_picture_that_is_missing_cut_or_none(refused, model, photo, tmp_path):
    assert "No such file" in refused("run", model, "--image", tmp_path / "none.jpg", exit_code=IMAGE)
    assert str(model) in refused("run", model, "--image", model, exit_code=IMAGE)
    photo.write_bytes(photo.read_bytes()[:400])
    assert str(photo) in refused("run", model, "--image", photo, exit_code=IMAGE)


def test_a_picture_for_a_model_that_takes_none(refused, vectors, photo):
    message = refused("run", vectors, "--image", photo, exit_code=INPUT)
    assert message.startswith("--image needs one input of shape (1, 3, n, n); this model takes 'x' ('N', 16)")


@pytest.mark.parametrize(
    ("array", "name", "message"),
    [
        (np.ones((1, 16), np.float32), "z", "no input 'z'; the inputs are 'x'"),
        (np.ones((1, 15), np.float32), "x", "input 'x' has shape (1, 15); float32 of shape (N, 16) would do"),
        (np.ones(16, np.float32), "x", "input 'x' has shape (16,); float32 of shape (N, 16) would do; a single one"),
        (np.ones((1, 16), np.int64), "x", "input 'x' has dtype int64; float32 of shape (N, 16) would do"),
    ],
    ids=["name", "shape", "rank", "dtype"],
)
def test_an_input_of_the_wrong_name_shape_or_dtype(refused, vectors, tmp_path, array, name, message):
    np.save(tmp_path / "x.npy", array)
    assert refused("run", vectors, "--input", f"{name}={tmp_path / 'x.npy'}", exit_code=INPUT).startswith(message)


@pytest.mark.parametrize("item", ["x", "x=", "=x.npy"])
def test_an_input_that_is_not_name_and_file(refused, vectors, item):
    assert refused("run", vectors, "--input", item, exit_code=INPUT) == f"--input {item!r}; NAME=FILE.npy would do"


def test_an_input_given_twice(refused, vectors, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 16), np.float32))
    item = f"x={tmp_path / 'x.npy'}"
    assert "given twice" in refused("run", vectors, "--input", item, "--input", item, exit_code=INPUT)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vgg", "no network 'vgg'; there are resnet50"),
        ("scale=2", "--preprocess: no field 'scale'; there are size, mean, std"),
        ("size=big", "--preprocess: size='big'; a whole number would do"),
        ("mean=1/2", "--preprocess: mean='1/2'; a number or three as in 1/2/3 would do"),
        ("resize=crop", "--preprocess: resize='crop'; stretch, center_crop would do"),
        ("size=0", "size=0; must be at least 1"),
    ],
)
def test_preprocessing_in_words_that_mean_nothing(refused, model, photo, spec, message):
    assert refused("run", model, "--image", photo, "--preprocess", spec, exit_code=INPUT).startswith(message)


def test_preprocessing_of_arrays(refused, vectors, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((1, 16), np.float32))
    options = ("--input", f"x={tmp_path / 'x.npy'}", "--preprocess", "size=3")
    assert "for pictures" in refused("run", vectors, *options, exit_code=INPUT)


def test_a_backend_that_is_not_there(refused, model, photo):
    message = refused("run", model, "--image", photo, "--kernels", "tpu", exit_code=INPUT)
    assert message.startswith("no kernel backend 'tpu'; there are reference")


def test_a_plan_that_cannot_be_written(refused, model):
    assert "/nowhere/x.fpgaplan" in refused("partition", model, "--save", "/nowhere/x.fpgaplan", exit_code=MODEL)


@pytest.mark.parametrize(
    "line",
    [
        ("frobnicate",),
        ("run",),
        ("run", "m.onnx"),
        ("run", "m.onnx", "--top", "0"),
        ("devices", "--colour"),
        ("zoo", "x"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_with_2_and_shows_the_usage(fpgasim, line):
    assert "Usage: " in fpgasim(*line, exit_code=2).stderr


def test_permission_denied_is_one_line(refused, tmp_path, monkeypatch):
    def denied(file, **arrays):
        raise PermissionError(13, "Permission denied", file.name)

    np.save(tmp_path / "x.npy", np.ones((1, 16), np.float32))
    monkeypatch.setattr("numpy.savez", denied)
    command = ("quantize", tmp_path / "x.npy", "--out", tmp_path / "q.npz")
    assert refused(*command, exit_code=1).endswith(": Permission denied")


def argv(*args):
    return [sys.executable, "-m", "fpgasim", *map(str, args)]


def fpgasim_process(*args):
    return subprocess.run(argv(*args), capture_output=True, text=True, check=False)


def test_the_command_as_a_process_has_no_traceback_and_the_right_exit_code(tmp_path):
    answer = fpgasim_process("simulate", tmp_path / "none.onnx")
    assert answer.returncode == MODEL
    assert answer.stdout == ""
    assert answer.stderr.startswith("fpgasim: error: no model ")
    assert answer.stderr.count("\n") == 1


def test_a_model_that_fails_while_it_runs(tmp_path):
    """Gather past the end: only ONNX Runtime can tell, and it must not write to standard error itself."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"], name="gather")],
        "small",
        [helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(3, np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    np.save(tmp_path / "i.npy", np.array([7]))
    answer = fpgasim_process("run", tmp_path / "m.onnx", "--input", f"i={tmp_path / 'i.npy'}")
    assert answer.returncode == MODEL
    assert answer.stderr.startswith("fpgasim: error: the CPU piece of node 'gather' failed on ONNX Runtime: ")
    assert answer.stderr.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    writer = subprocess.Popen(argv("formats", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.close()
    with writer:
        assert writer.stderr.read() == b""


def test_an_interrupt_exits_with_130_and_says_nothing_of_python(tmp_path):
    fifo = tmp_path / "model.onnx"
    os.mkfifo(fifo)  # reading it waits until the interrupt comes
    process = subprocess.Popen(
        argv("simulate", fifo),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    descriptor = os.open(fifo, os.O_WRONLY)  # returns once the command has opened the model
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    os.close(descriptor)
    assert process.returncode == 130
    assert "Traceback" not in errors
