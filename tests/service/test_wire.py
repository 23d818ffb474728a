"""The descriptors of the wire are those of the proto files, and stand beside another pool's."""

from importlib import resources

import pytest
from google.protobuf import descriptor_pb2

from fpgasim.service import wire


def test_the_descriptors_are_what_protoc_makes_of_the_files():
    made, kept = descriptor_pb2.FileDescriptorSet(), descriptor_pb2.FileDescriptorSet()
    made.ParseFromString(wire.describe())
    kept.ParseFromString(resources.files("fpgasim.service").joinpath("protos", "wire.binpb").read_bytes())
    assert made == kept


@pytest.mark.parametrize(
    ("message", "field", "number"),
    [
        ("tensorflow.TensorProto", "dtype", 1),
        ("tensorflow.TensorProto", "tensor_content", 4),
        ("tensorflow.TensorProto", "half_val", 13),
        ("tensorflow.TensorProto", "uint64_val", 17),
        ("tensorflow.TensorShapeProto", "dim", 2),
        ("tensorflow.serving.ModelSpec", "signature_name", 3),
        ("tensorflow.serving.ModelSpec", "version_label", 4),
        ("tensorflow.serving.PredictRequest", "output_filter", 3),
        ("tensorflow.serving.PredictResponse", "outputs", 1),
        ("tensorflow.serving.PredictResponse", "model_spec", 2),
        ("tensorflow.serving.ClassificationResponse", "result", 1),
        ("tensorflow.serving.ModelConfig", "model_version_policy", 7),
        ("inference.ModelInferRequest", "raw_input_contents", 7),
        ("inference.ModelInferResponse", "raw_output_contents", 6),
        ("inference.InferTensorContents", "bytes_contents", 8),
    ],
)
def test_fields_have_the_numbers_of_the_wire(message, field, number):
    assert wire.message(message).DESCRIPTOR.fields_by_name[field].number == number


def test_the_same_names_in_the_default_pool_do_no_harm():
    from google.protobuf import descriptor_pool

    file = descriptor_pb2.FileDescriptorProto(name="other/tensor.proto", package="tensorflow", syntax="proto3")
    file.message_type.add(name="TensorProto")
    descriptor_pool.Default().Add(file)
    assert wire.message("tensorflow.TensorProto")(dtype=1).dtype == 1


def test_a_map_of_any_takes_messages_of_the_pool():
    response = wire.message("tensorflow.serving.GetModelMetadataResponse")()
    signatures = wire.message("tensorflow.serving.SignatureDefMap")()
    signatures.signature_def["serving_default"].method_name = "tensorflow/serving/predict"
    response.metadata["signature_def"].Pack(signatures)
    assert response.metadata["signature_def"].type_url == "type.googleapis.com/tensorflow.serving.SignatureDefMap"


def test_services_have_the_methods_that_clients_call():
    assert {"Predict", "Classify", "GetModelMetadata"} <= set(wire.methods(wire.PREDICTION_SERVICE))
    assert {"GetModelStatus", "HandleReloadConfigRequest"} == set(wire.methods(wire.MODEL_SERVICE))
    assert "ModelInfer" in wire.methods(wire.INFERENCE_SERVICE)
