"""TensorFlow Serving's own stubs: the model's signature and state are asked for, then it is called by its names."""

import grpc
from command_line import arguments, headers, show
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

given = arguments()
if given.ca:
    with open(given.ca, "rb") as file:
        channel = grpc.secure_channel(given.address, grpc.ssl_channel_credentials(file.read()))
else:
    channel = grpc.insecure_channel(given.address)
with channel:
    said = {"timeout": 30, "metadata": headers(given)}
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    found = stub.GetModelMetadata(asked, **said)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert found.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    (input_name,), (output_name,) = signature.inputs, signature.outputs
    assert signature.inputs[input_name].dtype == types_pb2.DT_STRING

    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = found.model_spec.name
    states = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, **said).model_version_status
    assert [(one.version, one.state) for one in states] == [(1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)]

    request = predict_pb2.PredictRequest(output_filter=[output_name])
    request.model_spec.name = found.model_spec.name
    request.model_spec.signature_name = "serving_default"
    request.inputs[input_name].dtype = types_pb2.DT_STRING
    request.inputs[input_name].tensor_shape.dim.add(size=1)
    request.inputs[input_name].string_val.append(given.data)
    reply = stub.Predict(request, **said)
assert list(reply.outputs) == [output_name]
show(reply.outputs[output_name].float_val)
