"""`servable` and `Servable.run`: names, shapes, the engine's turns, and the networks of the zoo."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import fpgasim as fs
from fpgasim.errors import ImageError, InputError, ModelError, UnknownNameError
from fpgasim.service import CpuStage, FpgaStage, ModelDefinition, Signature, VirtualFpga, servable
from fpgasim.service.servables import SeededWeightsWarning
from fpgasim.service.steps import Limits

from .small import PICTURES, classifier, featurizer, linear, picture, strings, two_outputs

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


def pictures_to_classes():
    definition = ModelDefinition("pictures")
    definition.pipeline += [
        CpuStage(PICTURES, layout="NCHW"),
        FpgaStage(featurizer()),
        CpuStage(classifier(), output={"classes:0": "probabilities"}),
    ]
    return definition.servable()


def session_result(graph, feeds, device="bw_a10", format="bw_1s5e5m"):
    session = fs.compile(fs.partition(graph, device, format, objective="coverage"))
    return session.run(feeds)


def test_a_graph_gives_what_its_session_gives():
    result = servable(linear()).run({"x": X})
    assert np.array_equal(result.outputs["y"], session_result(linear(), {"x": X})["y"])


def test_a_servable_is_called_after_its_source_unless_told(tmp_path):
    linear().save(tmp_path / "my net (1).onnx")
    assert servable(tmp_path / "my net (1).onnx").name == "my-net-1"
    assert servable(linear()).name == "linear"
    assert servable(linear(), name="other", version=7).version == 7


@pytest.mark.parametrize("kind", ["onnx", "fpgaplan", "zip"])
def test_files_are_told_by_what_is_in_them_whatever_they_are_called(tmp_path, kind):
    path = tmp_path / "contents"
    if kind == "onnx":
        linear().save(path)
    elif kind == "fpgaplan":
        fs.partition(linear(), "bw_a10", "bw_1s5e5m", objective="coverage").save(path)
    else:
        definition = ModelDefinition()
        definition.pipeline.append(FpgaStage(linear()))
        definition.save(path)
    assert np.array_equal(servable(path).run({"x": X}).outputs["y"], servable(linear()).run({"x": X}).outputs["y"])


def test_a_plan_keeps_its_device_and_format():
    plan = fs.partition(linear(rows=40), "bw_s10", "msfp11", objective="coverage")
    assert servable(plan, device="bw_a10", format="msfp16").plans == (plan,)


def test_a_folder_stands_for_the_one_model_in_it(tmp_path):
    linear().save(tmp_path / "a.onnx")
    (tmp_path / "readme.txt").write_text("not a model")
    assert servable(tmp_path).run({"x": X}).outputs["y"].shape == (2, 3)
    linear().save(tmp_path / "b.onnx")
    with pytest.raises(ModelError, match=r"must hold one .* file; 'a.onnx', 'b.onnx'"):
        servable(tmp_path)


def test_a_source_that_is_none_is_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="no model 'resnet51': there is no such file, and the networks of the zoo are"):
        servable("resnet51")
    (tmp_path / "junk").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ModelError, match="junk"):
        servable(tmp_path / "junk")
    with pytest.raises(InputError, match="a int cannot be served"):
        servable(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"weights='w.npz'; only a network of the zoo takes them"):
        servable(linear(), weights="w.npz")
    with pytest.raises(InputError, match="servable's name"):
        servable(linear(), name="a/b")
    with pytest.raises(InputError, match="version=0"):
        servable(linear(), version=0)


@pytest.mark.parametrize(("asked", "answered"), [("x", "y"), ("images", "output_alias")])
def test_the_names_of_a_reply_follow_the_request(asked, answered):
    assert list(servable(linear()).run({asked: X}).outputs) == [answered]


def test_a_filter_names_what_it_wants_and_both_names_can_be_had():
    s = servable(linear())
    assert list(s.run({"x": X}, ["output_alias"]).outputs) == ["output_alias"]
    assert list(s.run({"images": X}, ["y"]).outputs) == ["y"]
    assert list(s.run({"images": X}, [], both_names=True).outputs) == ["output_alias", "y"]


def test_several_outputs_keep_their_names_and_may_be_chosen():
    s = servable(two_outputs())
    x = np.ones((1, 2), np.float32)
    assert list(s.run({"images": x}).outputs) == ["a", "b"]
    assert list(s.run({"images": x}, ["b"]).outputs) == ["b"]


def test_an_alias_never_hides_a_tensor_of_that_name():
    s = servable(linear(inputs="output_alias", outputs="images"))
    assert s.signature.aliases == {}
    assert list(s.run({"output_alias": X}).outputs) == ["images"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({}, None, "input 'x' .or 'images'. is missing; got none"),
        ({"z": X}, None, "no input 'z'; .*the inputs are 'x' .or 'images'."),
        ({"imags": X}, None, "no input 'imags'; did you mean 'images'"),
        ({"x": X, "images": X}, None, "inputs 'x' and 'images' are the same tensor; give one of them"),
        ({"images": X[0]}, None, "input 'images' has shape .4,.; float32 of shape .*needs an axis for the batch"),
        ({"x": X[:, :3]}, None, "input 'x' has shape .2, 3."),
        ({"x": strings(b"a")}, None, "input 'x' has dtype object; float32"),
        ({"x": X}, ["z"], "no output 'z'; .*the outputs are 'y' .or 'output_alias'."),
    ],
)
def test_a_callers_mistake_is_named_in_his_words(inputs, outputs, message):
    with pytest.raises(InputError, match=message):
        servable(linear()).run(inputs, outputs)


def test_an_alias_of_no_tensor_is_refused():
    inputs = servable(linear()).signature.inputs
    with pytest.raises(InputError, match="alias 'a' is of 'b'; the tensors are 'x'"):
        Signature.of(inputs, (), {"a": "b"})


def test_pictures_go_through_all_stages_and_a_batch_is_its_pictures():
    s = pictures_to_classes()
    a, b = picture(1), picture(2, (50, 9), "JPEG")
    batch = s.run({"images": strings(a, b)}).outputs["output_alias"]
    alone = [s.run({"Placeholder:0": strings(data)}).outputs["classes:0"] for data in (a, b)]
    assert batch.shape == (2, 3)
    assert np.array_equal(batch, np.concatenate(alone))
    tensors = fs.zoo.preprocess(PICTURES, [a, b])
    features = session_result(featurizer(), {"input": tensors})["features"]
    expected = fs.compile(fs.partition(classifier(), "bw_a10", "bw_1s5e5m", force={"*": "cpu"})).run(
        {"features": features}
    )["probabilities"]
    np.testing.assert_allclose(batch, expected, rtol=1e-6)


def test_a_picture_that_cannot_be_read_is_named_by_its_place():
    s = pictures_to_classes()
    with pytest.raises(ImageError, match="picture 1 of the batch: image of 4 bytes seems to be no picture"):
        s.run({"images": strings(picture(), b"junk")})
    with pytest.raises(InputError, match="picture 0 of the batch is a str; the bytes of a file would do"):
        s.run({"images": strings("/etc/hostname")})
    with pytest.raises(InputError, match="the batch holds no picture"):
        s.run({"images": strings()})
    with pytest.raises(InputError, match="needs an axis for the batch"):
        s.run({"images": np.array(picture(), object)})


def test_the_limit_of_pixels_is_the_servers_to_set():
    s = pictures_to_classes()
    s.limits = Limits(max_pixels=100)
    with pytest.raises(ImageError, match="a picture of 30x20 pixels; at most 100 are taken"):
        s.run({"images": strings(picture())})
    s.limits = Limits(max_pixels=600)
    assert s.run({"images": strings(picture())}).outputs["output_alias"].shape == (1, 3)


def test_a_result_says_what_the_simulated_engine_took_for_this_batch():
    s = servable(linear())
    one, many = s.run({"x": X[:1]}), s.run({"x": np.repeat(X, 50, axis=0)})
    timing = fs.compile(s.plans[0]).timing()
    assert one.cycles == timing.cycles
    assert one.fpga_seconds == pytest.approx((timing.total_ms - timing.cpu_ms) / 1e3)
    assert many.cycles > one.cycles
    assert list(one.stage_seconds) == ["fpga"]
    assert one.stage_seconds["fpga"] > 0


def test_at_the_pace_of_hardware_no_answer_comes_sooner():
    s = servable(linear(), fpga=VirtualFpga("hardware"))
    big = np.zeros((20000, 4), np.float32)
    s.run({"x": big})
    start = time.monotonic()
    result = s.run({"x": big})
    assert time.monotonic() - start >= result.fpga_seconds
    with pytest.raises(UnknownNameError, match="no pace 'slow'; there are host, hardware"):
        VirtualFpga("slow")  # type: ignore[arg-type]


def test_one_engine_takes_one_batch_at_a_time():
    fpga = VirtualFpga("hardware")
    inside, most = 0, 0
    lock = threading.Lock()

    def work():
        nonlocal inside, most
        with fpga.busy(0.01):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.001)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert time.monotonic() - start >= 0.05


def test_an_engine_is_free_again_after_a_failure():
    fpga = VirtualFpga()
    with pytest.raises(RuntimeError), fpga.busy(0):
        raise RuntimeError
    with fpga.busy(0):
        pass


def test_threads_get_the_answers_to_their_own_requests():
    s = servable(linear())
    wrong = []

    def ask(i):
        x = np.full((1 + i % 3, 4), i, np.float32)
        expected = x @ np.arange(1, 13, dtype=np.float32).reshape(4, 3)
        for _ in range(20):
            got = s.run({"x": x}).outputs["y"]
            if got.shape != expected.shape or not np.allclose(got, expected, rtol=0.05):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_warming_up_runs_every_stage_once():
    class Counting(VirtualFpga):
        batches = 0

        def busy(self, seconds):
            self.batches += 1
            return super().busy(seconds)

    for s in (pictures_to_classes(), servable(two_outputs()), servable(linear())):
        s.fpga = Counting()
        s.warm_up()
        assert s.fpga.batches == 1


def test_nothing_of_this_needs_the_packages_of_the_server(tmp_path):
    linear().save(tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['grpc', 'prometheus_client', 'cryptography']))\n"
        "import fpgasim.service as service\n"
        "print(service.servable(sys.argv[1]).name, service.ModelDefinition, service.Resnet50)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m.onnx"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("m ")


@pytest.mark.slow
def test_a_network_of_the_zoo_serves_azures_names_from_picture_to_classes():
    with pytest.warns(SeededWeightsWarning, match="densenet121_slim has random weights .seed 3."):
        s = servable("densenet121_slim", seed=3)
    assert s.name == "densenet121_slim"
    assert s.labels is not None
    assert len(s.labels) == 1000
    assert s.signature.aliases == {
        "images": "Placeholder:0",
        "output_alias": "classifier/densenet121/predictions/Softmax:0",
    }
    data = picture(0, (300, 260), "JPEG")
    result = s.run({"images": strings(data)})
    tensors = fs.zoo.preprocess_azure([data], scaling_factor=0.017, layout="NCHW", quirks=True)
    features = session_result(fs.zoo.featurizer("densenet121_slim", seed=3), {"input": tensors})
    classes = fs.zoo.classifier("densenet121_slim", seed=3)
    expected = fs.compile(fs.partition(classes, "bw_a10", "bw_1s5e5m", force={"*": "cpu"})).run(
        {classes.inputs[0].name: features["avgpool"]}
    )["probabilities"]
    np.testing.assert_allclose(result.outputs["output_alias"], expected, rtol=1e-5)
    assert result.outputs["output_alias"].sum() == pytest.approx(1, abs=1e-4)
    assert list(result.stage_seconds) == ["preprocessing", "featurizer", "classifier"]


@pytest.mark.slow
def test_a_detector_serves_its_twelve_tensors():
    with pytest.warns(SeededWeightsWarning):
        s = servable("ssd_vgg")
    azure = fs.zoo.NETWORKS["ssd_vgg"].azure
    assert azure is not None
    outputs = s.run({"images": strings(picture(0, (200, 300)))}).outputs
    assert tuple(outputs) == azure.features
    assert [array.shape[1:] for array in outputs.values()] == [dims[1:] for dims in azure.feature_dims]
    classes, _, boxes = fs.zoo.detect(list(outputs.values()))
    assert len(classes) == len(boxes)
    few = s.run({"Placeholder:0": strings(picture(0, (200, 300)))}, [azure.features[-1]])
    assert list(few.outputs) == [azure.features[-1]]
