"""An Azure document of September 2018, step by step: a quantized ResNet-50 as a web service on an FPGA.

The document told how to put preprocessing and a classifier around the network with `azureml.contrib.brainwave`, to
deploy it, score a picture, and speak TLS with keys, the last with `amlrealtimeai`. Here all of it happens on this
machine, in a folder that is gone afterwards. The weights are drawn from a seed, so the classes mean nothing.
"""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import matplotlib.cbook

from fpgasim import zoo
from fpgasim.errors import WebserviceException
from fpgasim.service import (
    BrainwaveImage,
    BrainWaveStage,
    BrainwaveWebservice,
    CallError,
    DeploymentClient,
    Model,
    ModelDefinition,
    PredictionClient,
    QuantizedResnet50,
    Resnet50,
    TensorflowStage,
    Webservice,
    Workspace,
    symbolic as tf,
    tls,
)
from fpgasim.service.models import utils

PHOTO = Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def step(title):
    print(f"\n== {title}", flush=True)


def tour(folder):
    step("Preprocess the image")
    # Input images as a tensor of any number of images, each a string of bytes.
    in_images = tf.placeholder(tf.string)
    image_tensors = utils.preprocess_array(in_images)
    print(image_tensors.shape)

    step("Add the featurizer")
    model_path = os.path.join(folder, "models")
    model = QuantizedResnet50(model_path, is_frozen=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        feature_tensor = model.import_graph_def(image_tensors)
    print(*(f"warning: {one.message}" for one in told), sep="\n")
    print(model.version)
    print(feature_tensor.name)
    print(feature_tensor.shape)

    step("Add the classifier")
    classifier_input, classifier_output = Resnet50.get_default_classifier(feature_tensor, model_path)
    print(classifier_input)
    print(classifier_output)

    step("Create the service definition")
    model_def_path = os.path.join(model_path, "save", "service_def.zip")
    os.makedirs(os.path.dirname(model_def_path))
    model_def = ModelDefinition()
    with tf.Session() as sess:
        model_def.pipeline.append(TensorflowStage(sess, in_images, image_tensors))
        model_def.pipeline.append(BrainWaveStage(sess, model))
        model_def.pipeline.append(TensorflowStage(sess, classifier_input, classifier_output))
        model_def.save(model_def_path)
    print(os.path.relpath(model_def_path, folder))

    step("Deploy the model")
    Path(folder, "config.json").write_text('{"workspace_name": "tour", "path": "workspace", "location": "eastus2"}')
    ws = Workspace.from_config(folder)
    print(ws.name, ws.resource_group, ws.location, ws.subscription_id, sep="\n")
    model_name = "resnet-50-rtai"
    registered_model = Model.register(ws, model_def_path, model_name)
    print(registered_model.id)
    service_name = "imagenet-infer"
    try:
        service = Webservice(ws, service_name)
    except WebserviceException as error:
        print(error)
        image_config = BrainwaveImage.image_configuration()
        deployment_config = BrainwaveWebservice.deploy_configuration()
        service = Webservice.deploy_from_model(ws, service_name, [registered_model], image_config, deployment_config)
        service.wait_for_deployment(True)

    step("Test the service")
    classes_entries = zoo.labels()
    with open(PHOTO) as f:  # in text mode, as the document has it: the file is opened once more, by its name
        results = service.run(f)
    print_top(classes_entries, results)

    step("Clean up the service")
    try:
        registered_model.delete()
    except WebserviceException as error:
        print(f"first the service: {error}")
    service.delete()
    registered_model.delete()
    print(Model.list(ws), Webservice.list(ws))

    step("Deploy a service with TLS")
    # For development; an authority's certificate comes as two such files as well. It names what clients will call.
    certificate = tls.self_signed(["localhost", "127.0.0.1"])
    cert_pem, key_pem = Path(folder, "cert.pem"), Path(folder, "key.pem")
    cert_pem.write_bytes(certificate.chain)
    key_pem.write_bytes(certificate.key)
    deployment_client = DeploymentClient("<subscription>", "<group>", "<account>", "eastus2", workspace=ws)
    model_id = deployment_client.register_model("resnet50-model", model_def_path)
    with open(cert_pem) as cert_file, open(key_pem) as key_file:
        cert, key = cert_file.read(), key_file.read()
    service = deployment_client.create_service(
        "quickstart-service", model_id, ssl_enabled=True, ssl_certificate=cert, ssl_key=key
    )
    print(service.ipAddress, service.state, "TLS" if service.ssl else "plain text")
    keys = {"primary": service.primary_key, "secondary": service.secondary_key}

    step("Use the service with its keys")
    for name, auth_key in keys.items():
        # The certificate signs itself, so the client is told to trust it.
        with PredictionClient(
            service.ipAddress, service.port, use_ssl=True, access_token=auth_key, root_certificates=cert_pem
        ) as client:
            results = client.score_image(PHOTO)
        print(f"{name} key: {results.shape[0]} classes, the likeliest is {classes_entries[results.argmax()]!r}")

    # The other way, for clients that take no certificate: gRPC reads this variable when it starts.
    said = subprocess.run(
        [sys.executable, "-m", "fpgasim", "score", f"localhost:{service.port}", "--tls", "--image", str(PHOTO)],
        env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(cert_pem), "FPGASIM_AUTH_KEY": keys["primary"]},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(said.stdout, end="")

    step("What is refused")
    for what, port, auth_key, more in (
        ("wrong key", service.port, "not-the-key", {"root_certificates": cert_pem}),
        ("no key", service.port, "", {"root_certificates": cert_pem}),
        ("untrusted certificate", service.port, keys["primary"], {}),
    ):
        try:
            with PredictionClient(service.ipAddress, port, use_ssl=True, access_token=auth_key, **more) as client:
                client.score_image(PHOTO)
        except CallError as error:
            print(f"{what}: {error.code} after {error.attempts} attempt")

    step("Exchange a key")
    new = deployment_client.regenerate_auth_keys(service.id, "Primary")
    print("primary", "new" if new["primaryKey"] != keys["primary"] else "old")
    print("secondary", "new" if new["secondaryKey"] != keys["secondary"] else "old")

    step("Update a running service to TLS")
    service = deployment_client.update_service(service.id, ssl_enabled=False)
    port = service.port
    print("TLS" if service.ssl else "plain text")
    service = deployment_client.update_service(service.id, ssl_enabled=True, ssl_certificate=cert, ssl_key=key)
    print("TLS" if service.ssl else "plain text", "same port" if service.port == port else "another port")
    print_top(classes_entries, service.run(PHOTO))

    deployment_client.delete_service(service.id)
    deployment_client.delete_model(model_id)


def print_top(classes_entries, results):
    # map results [class_id] => [confidence], sort by confidence, print the top 5
    sorted_results = sorted(enumerate(results), key=lambda x: x[1], reverse=True)
    for top in sorted_results[:5]:
        print(classes_entries[top[0]], "confidence:", top[1])


with tempfile.TemporaryDirectory() as place:
    try:
        tour(place)
    finally:
        if Path(place, "workspace/workspace.json").exists():
            for left in Webservice.list(Workspace.open(Path(place, "workspace"))):
                left.delete()
