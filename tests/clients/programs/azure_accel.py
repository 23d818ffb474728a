"""azureml-accel-models' PredictionClient: a file by alias and by tensor name, a tensor, with its own Bearer header."""

import numpy as np
from azure_client import load, trust
from command_line import arguments, show

given = arguments()
trust(given.ca)
client = load("azureml/accel/_client.py").PredictionClient(given.host, given.port, bool(given.ca), given.key, "")
scores = client.score_file(given.picture)
assert scores.shape == (1000,)
np.testing.assert_array_equal(client.score_file(given.picture, "images", "output_alias"), scores)
np.testing.assert_array_equal(client.score_file(given.picture, input_name="Placeholder:0"), scores)
np.testing.assert_array_equal(client.score_tensors({"images": (given.data, [1], 7)}), scores[None])
arrays = {"images": np.array([given.data, given.data], object)}
np.testing.assert_array_equal(client.score_numpy_arrays(arrays), np.stack([scores, scores]))
show(scores)
