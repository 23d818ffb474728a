"""Zips that Azure's SDKs of 2018 and 2019 wrote: recognised, and their stages named."""

import json
import zipfile

import pytest

from fpgasim.errors import ModelError
from fpgasim.service import ModelDefinition, OnnxStage, servable
from fpgasim.service.old_definitions import OldStage, read_old

from .small import linear

# As azureml.contrib.brainwave 1.0.33 writes it, dimensions with its typing error.
CONTRIB = {
    "pipeline": [
        {
            "type": "tensorflow", "input_tensor": "Placeholder:0", "output_tensor": "map/TensorArrayStack:0",
            "model_path": "3c8c66c2", "name": "preprocess", "output_tensor_dims": [None, 224, 224, 3],
        },
        {
            "type": "brainwave", "input_tensor_dims": [None, 244, 244, 3], "output_tensor_dims": [None, 1, 1, 2048],
            "model_path": "9f1f3a70", "properties": {"model_ref": "msfprn50", "model_version": "1.1.2"},
        },
        {
            "type": "tensorflow", "input_tensor": "Input:0", "output_tensor": "resnet_v1_50/logits/Softmax:0",
            "model_path": "77a0e3b1", "input_tensor_dims": [None, 1, 1, 2048], "output_tensor_dims": [None, 1000],
        },
    ],
    "environment": {"python_version": "3.6.6", "tensorflow_version": "1.10.0", "package_version": "1.0.33"},
}  # fmt: skip
# As amlrealtimeai writes it.
FIRST = {
    "aml_runtime_version": "1.1",
    "pipeline": [
        {"type": "brainwave", "model_ref": "rn9000", "model_version": "1.1.6-rc", "output_tensor_dims": [1, 1, 2048]}
    ],
}


def written(path, name, facts):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, facts if isinstance(facts, str) else json.dumps(facts))
        archive.writestr("9f1f3a70/", "")
        archive.writestr("9f1f3a70/checkpoint", "model_checkpoint_path: 'resnet50_bw'")
    return path


def test_the_stages_of_the_sdk_of_2018_are_read(tmp_path):
    old = read_old(written(tmp_path / "old.zip", "manifest.json", CONTRIB))
    assert old is not None
    assert old.sdk == "azureml.contrib.brainwave"
    assert old.environment["tensorflow_version"] == "1.10.0"
    assert [stage.type for stage in old.stages] == ["tensorflow", "brainwave", "tensorflow"]
    assert old.stages[1] == OldStage("brainwave", "9f1f3a70", "", "", "msfprn50", "1.1.2")


def test_its_zip_is_an_error_that_names_every_stage_and_what_to_do(tmp_path):
    path = written(tmp_path / "old.zip", "manifest.json", CONTRIB)
    for opening in (ModelDefinition.load, servable):
        with pytest.raises(ModelError) as caught:
            opening(path)
        text = str(caught.value)
        assert "was written by azureml.contrib.brainwave" in text
        assert "1. tensorflow Placeholder:0 -> map/TensorArrayStack:0;" in text
        assert "2. brainwave msfprn50 1.1.2, which is QuantizedResnet50 here;" in text
        assert "3. tensorflow Input:0 -> resnet_v1_50/logits/Softmax:0" in text
        assert "fpgasim.service.models" in text
        assert "\n" not in text


def test_the_first_sdks_zip_is_known_by_its_own_file(tmp_path):
    path = written(tmp_path / "old.zip", "service_def.json", FIRST)
    with pytest.raises(
        ModelError, match=r"written by amlrealtimeai .*1. brainwave rn9000 1.1.6-rc, which is not known"
    ):
        ModelDefinition.load(path)


def test_our_own_zips_and_others_are_not_taken_for_old_ones(tmp_path):
    definition = ModelDefinition()
    definition.pipeline.append(OnnxStage(linear()))
    definition.save(tmp_path / "new.zip")
    assert read_old(tmp_path / "new.zip") is None
    assert read_old(written(tmp_path / "other.zip", "readme.json", {})) is None
    with pytest.raises(ModelError, match=r"other.zip' lacks 'manifest.json'"):
        ModelDefinition.load(tmp_path / "other.zip")


@pytest.mark.parametrize(
    "facts",
    [
        {"pipeline": [3]},
        {"pipeline": [{}]},
        {"pipeline": [{"type": {"a": 1}, "properties": [1], "name": None}], "environment": [1]},
        {"pipeline": [{"type": "x" * 10_000}] * 500},
        {"pipeline": 3},
        "[1]",
        "{",
    ],
)
def test_a_broken_old_definition_is_one_clear_error(tmp_path, facts):
    for name in ("manifest.json", "service_def.json"):
        with pytest.raises(ModelError, match=r"old.zip|stage 1 of the old definition is a int") as caught:
            ModelDefinition.load(written(tmp_path / "old.zip", name, facts))
        assert len(str(caught.value)) < 10_000
