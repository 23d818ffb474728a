"""NVIDIA's tritonclient, by the Open Inference Protocol."""

import numpy as np
from command_line import arguments, headers, show
from tritonclient.grpc import InferenceServerClient, InferInput

MODEL = "pictures"
given = arguments()
client = InferenceServerClient(given.address, ssl=bool(given.ca), root_certificates=given.ca or None)
said = {"headers": dict(headers(given))}
assert client.is_server_live(**said)
assert client.is_server_ready(**said)
assert client.is_model_ready(MODEL, **said)
metadata = client.get_model_metadata(MODEL, **said)
(tensor,) = metadata.inputs
assert tensor.datatype == "BYTES"
image = InferInput(tensor.name, [1], tensor.datatype)
image.set_data_from_numpy(np.array([given.data], dtype=object))
answer = client.infer(MODEL, [image], **said)
scores = answer.as_numpy(metadata.outputs[0].name)
assert scores.shape == (1, 1000)
show(scores[0])
client.close()
