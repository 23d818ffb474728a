"""An Azure document of May 2019, step by step: a quantized ResNet-50, converted, put into an image and deployed.

The document told how to save preprocessing, network and classifier as a model, register and convert it, build a
container image of it and deploy that, with `azureml.accel`. Here all of it happens on this machine, in a folder that is
gone afterwards. The weights are drawn from a seed, so the classes mean nothing.
"""

import os
import tempfile
import warnings
from pathlib import Path

import matplotlib.cbook

from fpgasim import zoo
from fpgasim.errors import WebserviceException
from fpgasim.service import (
    AccelContainerImage,
    AccelOnnxConverter,
    AksCompute,
    AksWebservice,
    CallError,
    ComputeTarget,
    EdgeTarget,
    Image,
    Model,
    PredictionClient,
    QuantizedResnet50,
    Webservice,
    Workspace,
    client_from_service,
    symbolic as tf,
    tls,
)
from fpgasim.service.models import utils

PHOTO = Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


def step(title):
    print(f"\n== {title}", flush=True)


def tour(folder):
    step("Load the workspace")
    Path(folder, "config.json").write_text('{"workspace_name": "tour", "path": "workspace", "location": "eastus"}')
    ws = Workspace.from_config(folder)
    print(ws.name, ws.resource_group, ws.location, ws.subscription_id, sep="\n")

    step("Preprocess the image")
    in_images = tf.placeholder(tf.string)
    image_tensors = utils.preprocess_array(in_images)
    print(image_tensors.shape)

    step("Load the featurizer")
    save_path = os.path.join(folder, "models")
    model_graph = QuantizedResnet50(save_path, is_frozen=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        feature_tensor = model_graph.import_graph_def(image_tensors)
    print(*(f"warning: {one.message}" for one in told), sep="\n")
    print(model_graph.version)
    print(feature_tensor.name)
    print(feature_tensor.shape)

    step("Add the classifier")
    classifier_output = model_graph.get_default_classifier(feature_tensor)
    print(classifier_output)

    step("Save the model")
    model_name = "resnet50"
    model_def_path = os.path.join(save_path, model_name)
    print(f"Saving model in {os.path.relpath(model_def_path, folder)}")
    with tf.Session() as sess:
        model_graph.restore_weights(sess)
        tf.saved_model.simple_save(
            sess, model_def_path, inputs={"images": in_images}, outputs={"output_alias": classifier_output}
        )

    step("Register the model")
    registered_model = Model.register(workspace=ws, model_path=model_def_path, model_name=model_name)
    print("Successfully registered: ", registered_model.name, registered_model.description, registered_model.version)
    # By default, the latest version is retrieved. You can specify the version, i.e. version=1
    registered_model = Model(ws, name="resnet50")
    print(registered_model.name, registered_model.description, registered_model.version)

    step("Convert the model")
    input_tensor = in_images.name
    output_tensors = classifier_output.name
    print(input_tensor)
    print(output_tensors)
    convert_request = AccelOnnxConverter.convert_tf_model(ws, registered_model, input_tensor, output_tensors)
    convert_request.wait_for_completion(show_output=True)
    converted_model = convert_request.result
    print(converted_model.name, converted_model.version, converted_model.id)
    print(converted_model.url, converted_model.created_time)

    step("Create the image")
    # The image gets this small root filesystem in the place of Python and all packages (350 MB, a minute), which
    # `AccelContainerImage.image_configuration()` packs by itself.
    root = Path(folder, "root")
    command = root / "usr/local/bin/fpgasim"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\nexec python3 -m fpgasim "$@"\n')
    command.chmod(0o755)
    image_config = AccelContainerImage.image_configuration(tags={"tour": "2019"}, root=root)
    image = Image.create(name=f"{model_name}-image", models=[converted_model], image_config=image_config, workspace=ws)
    image.wait_for_creation(show_output=True)
    for i in Image.list(workspace=ws, tags=["tour"]):
        print(f"{i.name}(v.{i.version} [{i.creation_state}]) stored at {i.image_location}")
        print(f"with build log {i.image_build_log_uri}")
    with image.run() as running, PredictionClient(running.address) as client:  # which Azure could not do
        print("run here:", client.score_file(PHOTO).shape)

    step("Deploy to the cloud, which is this machine")
    prov_config = AksCompute.provisioning_configuration()
    aks_target = ComputeTarget.create(workspace=ws, name="my-aks-9", provisioning_configuration=prov_config)
    aks_target.wait_for_completion(show_output=True)
    print(aks_target.provisioning_state)
    print(aks_target.provisioning_errors)
    aks_config = AksWebservice.deploy_configuration()
    aks_service = Webservice.deploy_from_image(
        workspace=ws, name="aks-service-1", image=image, deployment_config=aks_config, deployment_target=aks_target
    )
    aks_service.wait_for_deployment(show_output=True)
    print(aks_service.state)
    print(aks_service.scoring_uri)

    step("Test the service")
    classes_entries = zoo.labels()
    client = client_from_service(aks_service)
    results = client.score_file(path=PHOTO, input_name=input_tensor, outputs=output_tensors)
    # map results [class_id] => [confidence], sort by confidence, print the top 5
    sorted_results = sorted(enumerate(results), key=lambda x: x[1], reverse=True)
    for top in sorted_results[:5]:
        print(classes_entries[top[0]], "confidence:", top[1])
    by_alias = client.score_file(PHOTO)  # 'images' in, 'output_alias' out: the names of clients of 2018
    print("the same by the names of 2018:", (by_alias == results).all())
    (in_a_list,) = client.score_file(PHOTO, input_tensor, [output_tensors])
    print("a list of outputs keeps the batch:", in_a_list.shape)
    client.close()

    step("Secure the service")
    cert_pem, key_pem = Path(folder, "cert.pem"), Path(folder, "key.pem")
    certificate = tls.self_signed(["localhost", "127.0.0.1"])
    cert_pem.write_bytes(certificate.chain)
    key_pem.write_bytes(certificate.key)
    aks_service.update(ssl_enabled=True, ssl_cert_pem_file=cert_pem, ssl_key_pem_file=key_pem)
    aks_service.wait_for_deployment()
    print(aks_service.scoring_uri)
    primary, secondary = aks_service.get_keys()
    for name, key in (("primary", primary), ("secondary", secondary), ("wrong", "not-the-key")):
        with PredictionClient(
            aks_service.ip_address, aks_service.port, True, key, aks_service.name, root_certificates=cert_pem
        ) as client:
            try:
                print(f"{name} key:", (client.score_file(PHOTO) == results).all())
            except CallError as error:
                print(f"{name} key: {error.code} after {error.attempts} attempt")

    step("Deploy to an edge server, which is a folder to copy")
    edge = Webservice.deploy_from_image(
        ws, "edge-1", image, AksWebservice.deploy_configuration(), EdgeTarget(Path(folder, "edge"))
    )
    print(*sorted(path.name for path in edge.folder.iterdir()))

    step("Clean up the service")
    # Service, image and models, in this order: each is used by the one before.
    for what in (converted_model, image):
        try:
            what.delete()
        except WebserviceException as error:
            print(error)
    aks_service.delete()
    image.delete()
    registered_model.delete()
    converted_model.delete()
    print(Webservice.list(ws), Image.list(ws), Model.list(ws))


with tempfile.TemporaryDirectory() as place:
    try:
        tour(place)
    finally:
        if Path(place, "workspace/workspace.json").exists():
            for left in Webservice.list(Workspace.open(Path(place, "workspace"))):
                left.delete()
