"""azureml-contrib-brainwave's PredictionClient, which never sends the key it is given."""

import numpy as np
from azure_client import load, trust
from command_line import arguments, show

given = arguments()
trust(given.ca)
module = load("azureml/contrib/brainwave/client.py")
module.time.sleep = lambda seconds: None  # it would wait 15 s before it tells of a refused key
client = module.PredictionClient(given.host, given.port, bool(given.ca), given.key)
scores = client.score_image(given.picture)
assert scores.shape == (1000,)
np.testing.assert_array_equal(client.score_file(given.data), scores)
np.testing.assert_array_equal(module.tf.contrib.util.make_ndarray(client.score_tensor(given.data, [1], 7)), [scores])
show(scores)
