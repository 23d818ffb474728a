"""Conversions: what goes in, which names it takes, what comes out, what it says when it cannot be."""

import errno
import json
import subprocess
import sys
import threading
import zipfile

import numpy as np
import onnx
import pytest

import fpgasim as fs
from fpgasim.errors import (
    ConversionError,
    InputError,
    ModelError,
    ModelNotFoundException,
    UnknownNameError,
    WorkspaceError,
)
from fpgasim.service import AccelOnnxConverter, Model, servable, wire
from fpgasim.service.pipeline import CpuStage, FpgaStage, ModelDefinition, OnnxStage
from fpgasim.service.workspace import Workspace

from . import small

UNSUPPORTED = """g (float[N, 4, 6, 6] x) => (float[N, 2, 3, 3] z)
    <float[2, 2, 2, 2, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
                               1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0},
     int64[5] shape = {-1, 2, 2, 6, 6}, int64[4] back = {-1, 2, 3, 3}> {
    r = Relu (x)
    v = Reshape (r, shape)
    c = Conv <strides = [2, 2, 2]> (v, w)
    z = Reshape (c, back)
}"""


def register(workspace, tmp_path, proto, name="net"):
    path = tmp_path / f"{name}.onnx"
    onnx.save(proto, path)
    return Model.register(workspace, path, name)


def definition():
    made = ModelDefinition("pictures", labels=["cat", "dog", "bird"])
    made.pipeline.append(CpuStage(small.PICTURES, output="pictures:0", layout="NCHW"))
    made.pipeline.append(FpgaStage(small.featurizer(), output={"features:0": "features"}, name="featurizer"))
    made.pipeline.append(OnnxStage(small.classifier(), output={"softmax:0": "probabilities"}, name="classifier"))
    return made


@pytest.fixture
def defined(workspace, tmp_path):
    """A registered service definition."""
    definition().save(tmp_path / "service_def.zip")
    return Model.register(workspace, tmp_path / "service_def.zip", "pictures")


@pytest.fixture
def classifier(workspace, tmp_path):
    return register(workspace, tmp_path, small.classifier().to_proto(), "classifier")


def converted(*args, **options):
    operation = AccelOnnxConverter.convert_model(*args, **options)
    assert operation.wait_for_completion(timeout=60), operation.log
    assert operation.status == operation.get_status == "Succeeded"
    return operation


def failed(*args, **options):
    operation = AccelOnnxConverter.convert_model(*args, **options)
    assert not operation.wait_for_completion(timeout=60)
    assert operation.status == "Failed"
    with pytest.raises(ConversionError, match="Model conversion is not successful: ") as caught:
        assert operation.result
    assert isinstance(caught.value, ValueError)
    return operation


def test_an_onnx_model_is_planned_explained_registered_and_served(workspace, classifier):
    operation = converted(workspace, classifier, "features", "probabilities")
    result = operation.result
    assert (result.name, result.version, result.parent_id) == ("classifier.accelonnx", 1, "classifier:1")
    assert classifier.derived_model_ids == ["classifier.accelonnx:1"]
    assert [content.path for content in result.contents] == [
        *("conversion.log", "explanation.json", "explanation.txt", "service_def.zip")
    ]
    plan = fs.partition(small.classifier(), "bw_a10", "bw_1s5e5m", objective="coverage")
    assert operation.plan.assignment == plan.assignment
    assert operation.explanation == {"fpga": json.loads(json.dumps(plan.explanation(False).to_dict()))}
    assert "softmax" in operation.explain().lower()
    assert (result.properties["device"], result.properties["format"]) == ("bw_a10", "bw_1s5e5m")
    feeds = np.ones((2, 4, 1, 1), np.float32)
    expected = servable(small.classifier()).run({"features": feeds}).outputs["probabilities"]
    np.testing.assert_array_equal(servable(result.path).run({"features": feeds}).outputs["probabilities"], expected)


def test_a_downloaded_result_serves_as_well(workspace, classifier, tmp_path):
    folder = converted(workspace, classifier, "features", "probabilities").result.download(tmp_path / "out")
    assert servable(folder).plans


def test_the_names_given_are_those_that_clients_use(workspace, classifier):
    result = converted(workspace, classifier, "features:0", ["probabilities:0", "l"]).result
    signature = servable(result.path).signature
    assert [spec.name for spec in signature.inputs] == ["features:0"]
    assert [spec.name for spec in signature.outputs] == ["probabilities:0", "l"]


@pytest.mark.parametrize("outputs", ["l,f", "l, f", ["l", "f"], ("l", "f")])
def test_several_outputs_are_a_list_or_a_text_with_commas(workspace, classifier, outputs):
    result = converted(workspace, classifier, "features", outputs).result
    assert [spec.name for spec in servable(result.path).signature.outputs] == ["l", "f"]


def test_the_names_of_tensorflow_are_found_in_a_model_that_has_them(workspace, tmp_path):
    model = register(workspace, tmp_path, small.linear("x", "y").to_proto())
    proto = onnx.load(tmp_path / "net.onnx")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "x:0"
    proto.graph.output[0].name = proto.graph.node[0].output[0] = "y:0"
    model = register(workspace, tmp_path, proto)
    signature = servable(converted(workspace, model, "x", "y:0").result.path).signature
    assert (signature.inputs[0].name, signature.outputs[0].name) == ("x", "y:0")


def test_a_part_between_inner_tensors_is_converted_alone(workspace, classifier):
    operation = converted(workspace, "classifier:1", "f", "l")
    assert [node.op_type for node in operation.plan.graph.nodes] == ["MatMul"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ("feature", "l", r"model classifier:1: input_node: no tensor 'feature'; did you mean 'features'\? the graph"),
        ("features", "prob", "output_nodes: no tensor 'prob'; .*inputs 'features', outputs 'probabilities'"),
        ("features", "l,nowhere:0", "output_nodes: no tensor 'nowhere:0'"),
        ("l", "f", "the extracted outputs need graph input 'features'"),
        ("features", "features", "nothing is computed"),
        ("", "l", "input_node='' names no tensor"),
        ("features", [], r"output_nodes=\[\] names no tensor"),
        ("features", "l,,f", "names no tensor"),
        ("features", "l,l", "names a tensor twice"),
        ("features", 3, "output_nodes=3; the name of a tensor, or a list of them"),
        ("features", [b"l"], "the name of a tensor"),
    ],
)
def test_wrong_names_are_refused_at_once_beside_those_there_are(workspace, classifier, inputs, outputs, says):
    with pytest.raises(InputError, match=says):
        AccelOnnxConverter.convert_model(workspace, classifier, inputs, outputs)
    assert AccelOnnxConverter.history(workspace) == []


def test_only_the_fpga_stages_of_a_definition_are_planned(workspace, defined):
    operation = converted(workspace, defined, "images", "output_alias")
    made = ModelDefinition.load(operation.result.path)
    assert [type(stage).__name__ for stage in made.pipeline] == ["CpuStage", "FpgaStage", "CpuStage"]
    assert [isinstance(stage.work, fs.Plan) for stage in made.pipeline] == [False, True, False]
    assert made.labels == ["cat", "dog", "bird"]
    assert list(operation.explanation) == ["featurizer"]
    feeds = {"images": small.strings(small.picture())}
    before, after = (
        servable(path).run(feeds).outputs["output_alias"] for path in (defined.path, operation.result.path)
    )
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("inputs", "outputs", "stages"),
    [
        ("Placeholder:0", "softmax:0", 3),
        ("Placeholder", "softmax", 3),
        ("images", "features:0", 2),
        ("input", "output_alias", 2),
        ("input:0", "features", 1),
    ],
)
def test_the_names_of_a_definitions_stages_choose_among_them(workspace, defined, inputs, outputs, stages):
    made = ModelDefinition.load(converted(workspace, defined, inputs, outputs).result.path)
    assert len(made.pipeline) == stages
    assert made.labels == (["cat", "dog", "bird"] if outputs not in ("features:0", "features") else None)


def test_wrong_names_of_a_definition_list_what_its_stages_take_and_make(workspace, defined):
    with pytest.raises(
        InputError, match=r"no tensor 'image'; did you mean 'images'\?.*stage 'featurizer' takes 'input'"
    ):
        AccelOnnxConverter.convert_model(workspace, defined, "image", "output_alias")
    with pytest.raises(InputError, match=r"no tensor 'nothing'.*stage 'featurizer' makes 'features:0'; stage 'classif"):
        AccelOnnxConverter.convert_model(workspace, defined, "images", "nothing")
    with pytest.raises(InputError, match="output_nodes: no tensor"):
        AccelOnnxConverter.convert_model(workspace, defined, "images", "pictures,features:0,c")
    with pytest.raises(InputError, match="no stage after the inputs makes all of 'pictures', 'features:0'"):
        AccelOnnxConverter.convert_model(workspace, defined, "images", "pictures,features:0")
    with pytest.raises(InputError, match="no stage after the inputs makes all of 'features:0'"):
        AccelOnnxConverter.convert_model(workspace, defined, "features", "features:0")


def test_some_outputs_of_the_last_stage_are_enough(workspace, tmp_path):
    made = ModelDefinition("two", aliases={"first": "a", "second": "b", "in": "x"})
    made.pipeline.append(FpgaStage(small.two_outputs()))
    made.save(tmp_path / "d.zip")
    model = Model.register(workspace, tmp_path / "d.zip", "two")
    signature = servable(converted(workspace, model, "in", "second", False).result.path).signature
    assert [spec.name for spec in signature.outputs] == ["b"]
    assert signature.aliases == {"second": "b", "in": "x"}


def test_a_definition_without_an_fpga_stage_fails(workspace, defined):
    operation = failed(workspace, defined, "features", "softmax:0")
    assert "model pictures:1 has no FPGA stage; its stages are 'classifier'" in str(operation.error)


def test_a_folder_holds_one_model_and_the_files_of_its_weights(workspace, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    proto = small.linear(rows=64, columns=64).to_proto()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    model = Model.register(workspace, folder, "folder")
    assert converted(workspace, model, "x", "y").plan.fpga_mac_share == 1
    (folder / "other.zip").write_bytes(b"")
    with pytest.raises(
        ModelError, match=r"must hold one .onnx, .zip or .fpgaplan file.*'m.onnx', 'other.zip', 'weights'"
    ):
        AccelOnnxConverter.convert_model(workspace, Model.register(workspace, folder, "folder"), "x", "y")


def test_a_plan_stays_as_it_is(workspace, tmp_path):
    plan = fs.partition(small.classifier(), "bw_s10", "msfp12", force={"*": "cpu"})
    plan.save(tmp_path / "p.fpgaplan")
    model = Model.register(workspace, tmp_path / "p.fpgaplan", "planned")
    operation = converted(workspace, model, "features", "probabilities", False)
    assert (operation.plan.device.name, set(operation.plan.assignment.values())) == ("bw_s10", {"cpu"})


def test_a_layer_that_cannot_be_on_the_fpga_is_named_with_operator_reason_and_remedy(workspace, tmp_path):
    model = register(workspace, tmp_path, small.model(UNSUPPORTED))
    text = str(failed(workspace, model, "x", "z").error)
    assert text.startswith("1 of 4 nodes of stage 'fpga' of model net:1 cannot be on the FPGA: node 'Conv_c' (Conv): ")
    assert "unsupported-attr" in text
    assert text.endswith(
        "output_nodes='v' ends before 'Conv_c', or require_fpga_conversion=False leaves what cannot be there on the CPU"
    )
    assert converted(workspace, model, "x", "z", require_fpga_conversion=False).plan.assignment["Conv_c"] == "cpu"
    assert converted(workspace, model, "x", "v").plan.assignment


def test_a_part_of_which_nothing_is_on_the_fpga_fails(workspace, classifier):
    text = str(failed(workspace, classifier, "l", "probabilities").error)
    assert "'Softmax_probabilities' (Softmax): unsupported-op: Softmax is not an operator of the engine" in text


def test_a_stage_that_requires_the_fpga_for_all_its_nodes_says_which_are_not(workspace, tmp_path):
    made = ModelDefinition("strict")
    made.pipeline.append(FpgaStage(small.classifier(), require_fpga=True))
    made.save(tmp_path / "d.zip")
    model = Model.register(workspace, tmp_path / "d.zip", "strict")
    text = str(failed(workspace, model, "features", "probabilities").error)
    assert "stage 'fpga' of model strict:1: require_fpga: 1 of 3 nodes" in text
    assert "Softmax is not an operator" in text


def test_the_same_conversion_gives_the_same_model_another_the_next_version(workspace, classifier):
    first = converted(workspace, classifier, "features", "l").result
    again = converted(workspace, "classifier:1", ["features"], "l")
    assert again.result.id == first.id
    assert "was made before" in again.log
    assert converted(workspace, classifier, "features", "l", format="msfp16").result.version == 2
    assert converted(workspace, first, "features", "l").result.id == "classifier.accelonnx:3"
    first.delete()
    assert converted(workspace, classifier, "features", "l").result.version == 4


def test_the_device_and_the_format_may_be_chosen(workspace, classifier):
    plan = converted(workspace, classifier, "features", "l", device="bw_s10", format="msfp12").plan
    assert (plan.device.name, plan.numbers.format.name) == ("bw_s10", "msfp12")
    with pytest.raises(UnknownNameError, match="no device 'bw_x'"):
        AccelOnnxConverter.convert_model(workspace, classifier, "features", "l", device="bw_x")


def test_progress_is_printed_while_it_goes_on_and_kept(workspace, classifier, capsys):
    operation = AccelOnnxConverter.convert_tf_model(
        workspace, source_model=classifier, input_node="features", outputs_nodes="l"
    )
    assert operation.wait_for_completion(show_output=True)
    shown = capsys.readouterr().out
    assert shown == operation.log
    assert "stage 'fpga': 2 of 2 nodes and 100.0% of the multiply-accumulates on bw_a10 in bw_1s5e5m" in shown
    assert shown.endswith("Succeeded: classifier.accelonnx:1\n")
    assert "wrote service_def.zip" in operation.result.file("conversion.log").read_text()
    (kept,) = AccelOnnxConverter.history(workspace, "classifier:1")
    assert (kept["status"], kept["result"], kept["log"]) == ("Succeeded", "classifier.accelonnx:1", shown)


def test_a_failure_is_kept_with_its_log(workspace, classifier):
    operation = failed(workspace, classifier, "l", "probabilities")
    (kept,) = AccelOnnxConverter.history(workspace)
    assert (kept["source"], kept["result"], kept["status"]) == ("classifier:1", None, "Failed")
    assert kept["error"] == str(operation.error)
    assert "Failed: " in kept["log"]
    assert AccelOnnxConverter.history(workspace, "other:1") == []
    assert Model.list(workspace, "classifier.accelonnx") == []


def test_waiting_ends_in_time_and_a_result_is_not_there_before_the_end(workspace, classifier, monkeypatch):
    go_on = threading.Event()
    planned = ModelDefinition.planned
    monkeypatch.setattr(ModelDefinition, "planned", lambda *a, **k: [go_on.wait(60), planned(*a, **k)][1])
    operation = AccelOnnxConverter.convert_model(workspace, classifier, "features", "l")
    assert not operation.wait_for_completion(timeout=0.05)
    assert operation.status == "InProgress"
    with pytest.raises(ValueError, match="Model conversion is not complete"):
        assert operation.result
    go_on.set()
    assert operation.wait_for_completion()
    assert operation.result.version == 1


def test_a_failure_nobody_foresaw_is_told_to_the_one_who_waits(workspace, classifier, monkeypatch):
    monkeypatch.setattr(ModelDefinition, "planned", lambda *a, **k: 1 / 0)
    operation = failed(workspace, classifier, "features", "l")
    assert isinstance(operation.error, ZeroDivisionError)
    assert "Traceback" in operation.log


def test_a_full_disk_fails_the_conversion_and_registers_nothing(workspace, classifier, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    operation = failed(workspace, classifier, "features", "l")
    assert isinstance(operation.error, WorkspaceError)
    assert "cannot be kept" in str(operation.error)
    assert "No space left on device" in str(operation.error)
    assert [model.id for model in Model.list(workspace)] == ["classifier:1"]


#: Ends while the result is being registered, with all of it written but the end of the transaction.
ENDS = """
import sys, threading
from fpgasim.service import AccelOnnxConverter, registry
from fpgasim.service.workspace import Workspace

begun, add_item = threading.Event(), registry.add_item

def slow(*arguments):
    add_item(*arguments)
    begun.set()
    threading.Event().wait()

registry.add_item = slow
AccelOnnxConverter.convert_model(Workspace.open(sys.argv[1]), "classifier:1", "features", "probabilities")
begun.wait()
"""


def test_a_process_that_ends_during_a_conversion_leaves_nothing_registered(workspace, classifier):
    subprocess.run([sys.executable, "-c", ENDS, workspace.root], check=True, timeout=120)
    assert [model.id for model in Model.list(workspace)] == ["classifier:1"]
    assert AccelOnnxConverter.history(workspace) == []
    assert converted(workspace, classifier, "features", "probabilities").result.id == "classifier.accelonnx:1"


def test_a_model_is_a_model_or_an_id_of_this_workspace(workspace, classifier, tmp_path):
    assert converted(workspace, "classifier", "features", "l").result
    for missing in ("nobody", "nobody:1", "classifier:9"):
        with pytest.raises(ModelNotFoundException, match="ModelNotFound"):
            AccelOnnxConverter.convert_model(workspace, missing, "features", "l")
    with pytest.raises(InputError, match="a Model, or the id of one"):
        AccelOnnxConverter.convert_model(workspace, tmp_path, "features", "l")
    with pytest.raises(ModelNotFoundException, match="is of workspace 'tests', not of 'other'"):
        AccelOnnxConverter.convert_model(Workspace.create("other", path=tmp_path / "o"), classifier, "features", "l")


def test_files_that_are_no_models_are_refused_at_once(workspace, tmp_path):
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    with pytest.raises(ModelError, match="model junk:1: "):
        AccelOnnxConverter.convert_model(workspace, Model.register(workspace, tmp_path / "junk", "junk"), "a", "b")
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        old.writestr("manifest.json", json.dumps({"pipeline": [], "environment": {"tensorflow_version": "1.10"}}))
    with pytest.raises(ModelError, match=r"model old:1: .*azureml\.contrib\.brainwave"):
        AccelOnnxConverter.convert_model(workspace, Model.register(workspace, tmp_path / "old.zip", "old"), "a", "b")


def saved_model(workspace, tmp_path, data=None):
    """A registered SavedModel as far as it is read here: a graph Placeholder -> features -> Softmax, one signature."""
    saved = wire.message("tensorflow.SavedModel")(saved_model_schema_version=1)
    meta = saved.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    for name in ("Placeholder", "classifier/features", "Softmax"):
        meta.graph_def.node.add(name=name)
    signature = meta.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    signature.inputs["images"].name = "Placeholder:0"
    signature.outputs["output_alias"].name = "Softmax:0"
    folder = tmp_path / "saved"
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString() if data is None else data)
    (folder / "variables" / "variables.index").write_bytes(b"")
    return Model.register(workspace, folder, "saved")


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ("Placeholder_1:0", "Softmax:0", r"input_node: no tensor 'Placeholder_1:0'; did you mean 'Placeholder:0'\? "),
        (
            "images",
            "softmax",
            r"signature 'serving_default' has 'Placeholder:0' \('images'\) -> 'Softmax:0' \('output_",
        ),
        ("Placeholder:x", "Softmax:0", "no tensor 'Placeholder:x'"),
    ],
)
def test_the_names_of_a_saved_model_are_checked_without_tensorflow(workspace, tmp_path, inputs, outputs, says):
    with pytest.raises(InputError, match=says):
        AccelOnnxConverter.convert_model(workspace, saved_model(workspace, tmp_path), inputs, outputs)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [("images", "output_alias"), ("Placeholder", "Softmax:0"), ("classifier/features:0", "Softmax")],
)
def test_without_the_extra_a_saved_model_says_what_is_missing(workspace, tmp_path, inputs, outputs):
    with pytest.raises(ModelError, match=r"needs tensorflow and tf2onnx .*pip install 'fpgasim\[tensorflow\]'"):
        AccelOnnxConverter.convert_model(workspace, saved_model(workspace, tmp_path), inputs, outputs)


def test_a_broken_saved_model_is_refused(workspace, tmp_path):
    with pytest.raises(ModelError, match=r"model saved:1: saved_model.pb cannot be read"):
        AccelOnnxConverter.convert_model(workspace, saved_model(workspace, tmp_path, b"\xff\xff"), "a", "b")


TF2ONNX = """
import pathlib, sys
arguments = sys.argv
target = pathlib.Path(arguments[arguments.index("--output") + 1])
folder = pathlib.Path(arguments[arguments.index("--saved-model") + 1])
assert (folder / "saved_model.pb").exists()
print("2026-01-01 00:00:00,000 - INFO - Using opset <onnx, 17>")
print("chatter")
print("2026-01-01 00:00:00,000 - ERROR - Tensorflow op [x: DecodeJpeg] is not supported", file=sys.stderr)
made = pathlib.Path(__file__).with_name("made.onnx")
if made.exists():
    assert ("--signature_def" in arguments) == ("--inputs" not in arguments)
    target.write_bytes(made.read_bytes())
else:
    sys.exit("no such thing")
"""


@pytest.fixture
def tf2onnx(tmp_path, monkeypatch):
    """A folder with modules that stand where TensorFlow and tf2onnx would; `made.onnx` in it is what comes out."""
    (tmp_path / "modules" / "tf2onnx").mkdir(parents=True)
    (tmp_path / "modules" / "tf2onnx" / "__init__.py").write_text("")
    (tmp_path / "modules" / "tf2onnx" / "convert.py").write_text(TF2ONNX)
    (tmp_path / "modules" / "tensorflow.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    assert sys.path[0] == str(tmp_path / "modules")
    return tmp_path / "modules" / "tf2onnx"


def test_a_saved_model_goes_through_tf2onnx(workspace, tmp_path, tf2onnx):
    onnx.save(small.classifier().to_proto(), tf2onnx / "made.onnx")
    proto = onnx.load(tf2onnx / "made.onnx")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "images"
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "output_alias"
    onnx.save(proto, tf2onnx / "made.onnx")
    operation = converted(workspace, saved_model(workspace, tmp_path), "Placeholder:0", "Softmax:0")
    assert "tf2onnx: Using opset <onnx, 17>" in operation.log
    assert "chatter" not in operation.log
    signature = servable(operation.result.path).signature
    assert (signature.inputs[0].name, signature.outputs[0].name) == ("Placeholder:0", "Softmax:0")


def test_a_failure_of_tf2onnx_is_told_by_its_error(workspace, tmp_path, tf2onnx):
    operation = failed(workspace, saved_model(workspace, tmp_path), "images", "output_alias")
    assert str(operation.error) == "tf2onnx failed: Tensorflow op [x: DecodeJpeg] is not supported"
