"""SSD-VGG as a service, from the network to boxes in a picture, with the names of Azure's SDK.

There is no classifier behind it: the service answers with twelve tensors, and the caller makes boxes of them. The
weights are drawn from a seed, so the boxes mean nothing; a checkpoint of a trained one, `weights=`, takes their place.
"""

import tempfile
import warnings
from pathlib import Path

import matplotlib.cbook

from fpgasim import zoo
from fpgasim.service import (
    AccelOnnxConverter,
    AksWebservice,
    Model,
    PredictionClient,
    QuantizedSsdVgg,
    SeededWeightsWarning,
    Webservice,
    Workspace,
    symbolic as tf,
)
from fpgasim.service.models import utils

PHOTO = Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def tour(folder):
    print("== The network")
    images = tf.placeholder(tf.string)
    tensors = utils.preprocess_array(images, output_height=300, output_width=300, preserve_aspect_ratio=False)
    print(tensors.shape)
    model = QuantizedSsdVgg(folder / "models", is_frozen=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeededWeightsWarning)
        outputs = model.import_graph_def(tensors)
    print(*(f"{output.name} {output.shape}" for output in outputs), sep="\n")

    print("\n== Registered, converted, deployed")
    saved = str(folder / "ssd")
    names = [output.name for output in outputs]
    tf.saved_model.simple_save(None, saved, inputs={"images": images}, outputs=dict(zip(names, outputs, strict=True)))
    ws = Workspace.create("boxes", path=folder / "workspace")
    registered = Model.register(ws, saved, "ssd")
    request = AccelOnnxConverter.convert_tf_model(ws, registered, images.name, names)
    request.wait_for_completion()
    converted = request.result
    print(converted.id, request.status)
    service = Webservice.deploy_from_model(ws, "ssd", [converted], None, AksWebservice.deploy_configuration())
    try:
        service.wait_for_deployment()
        primary, _ = service.get_keys()
        with PredictionClient(service.ip_address, service.port, False, primary, service.name) as client:
            results = client.score_file(PHOTO, input_name=images.name, outputs=names)
    finally:
        service.delete()
    converted.delete()
    registered.delete()
    print(sum(result.size for result in results), "numbers in", len(results), "tensors")

    print("\n== Boxes")
    for threshold in (0.5, 0.9, 0.99):
        found = zoo.detect(results, select_threshold=threshold, nms_threshold=0.45)
        print(f"{len(found.scores)} boxes above {threshold}")
    picture = zoo.draw_boxes(PHOTO, found)
    picture.save(folder / "boxes.png")
    print(picture.size)


with tempfile.TemporaryDirectory() as place:
    tour(Path(place))
