"""Weights under the names and in the layouts of other libraries, in files as those libraries write them."""

import logging

import h5py
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from onnx import helper, numpy_helper

import fpgasim as fs
from fpgasim.errors import WeightsError
from fpgasim.zoo.building import Drawing
from fpgasim.zoo.naming import match_named
from fpgasim.zoo.weights import random_weights

from .tensorflow_writer import write_bundle, write_version_1

#: A network, a library, and some of its names, written out: the zoo's parameter -> the library's.
PROBES = {
    ("resnet50", "torchvision and timm"): {
        "conv1.weight": "conv1.weight",
        "layer3.5.bn2.running_var": "layer3.5.bn2.running_var",
        "layer1.0.downsample.0.weight": "layer1.0.downsample.0.weight",
        "fc.bias": "fc.bias",
    },
    ("resnet50_v1", "Keras"): {
        "conv1.weight": "conv1_conv/kernel",
        "bn1.weight": "conv1_bn/gamma",
        "layer1.0.conv1.weight": "conv2_block1_1_conv/kernel",
        "layer3.5.bn2.running_var": "conv4_block6_2_bn/moving_variance",
        "layer4.0.downsample.0.weight": "conv5_block1_0_conv/kernel",
        "layer4.0.downsample.1.bias": "conv5_block1_0_bn/beta",
        "fc.weight": "predictions/kernel",
    },
    ("resnet50_slim", "TF-Slim"): {
        "conv1.weight": "resnet_v1_50/conv1/weights",
        "bn1.running_mean": "resnet_v1_50/conv1/BatchNorm/moving_mean",
        "layer1.2.conv3.weight": "resnet_v1_50/block1/unit_3/bottleneck_v1/conv3/weights",
        "layer2.0.bn1.weight": "resnet_v1_50/block2/unit_1/bottleneck_v1/conv1/BatchNorm/gamma",
        "layer4.0.downsample.0.weight": "resnet_v1_50/block4/unit_1/bottleneck_v1/shortcut/weights",
        "layer4.0.downsample.1.bias": "resnet_v1_50/block4/unit_1/bottleneck_v1/shortcut/BatchNorm/beta",
        "fc.weight": "resnet_v1_50/logits/weights",
        "fc.bias": "resnet_v1_50/logits/biases",
    },
    ("resnet152_slim", "TF-Slim"): {
        "layer3.35.conv2.weight": "resnet_v1_152/block3/unit_36/bottleneck_v1/conv2/weights",
    },
    ("densenet121", "torchvision and timm"): {
        "conv0.weight": "features.conv0.weight",
        "denseblock3.denselayer24.norm2.running_mean": "features.denseblock3.denselayer24.norm2.running_mean",
        "transition2.conv.weight": "features.transition2.conv.weight",
        "norm5.bias": "features.norm5.bias",
        "classifier.weight": "classifier.weight",
    },
    ("densenet121", "Keras"): {
        "conv0.weight": "conv1/conv/kernel",
        "norm0.weight": "conv1/bn/gamma",
        "denseblock1.denselayer1.norm1.bias": "conv2_block1_0_bn/beta",
        "denseblock4.denselayer16.conv1.weight": "conv5_block16_1_conv/kernel",
        "denseblock4.denselayer16.norm2.running_mean": "conv5_block16_1_bn/moving_mean",
        "denseblock2.denselayer3.conv2.weight": "conv3_block3_2_conv/kernel",
        "transition1.norm.running_var": "pool2_bn/moving_variance",
        "transition3.conv.weight": "pool4_conv/kernel",
        "norm5.weight": "bn/gamma",
        "classifier.bias": "predictions/bias",
    },
    ("densenet121_slim", "TF-Slim"): {
        "conv0.weight": "densenet121/conv1/weights",
        "norm0.weight": "densenet121/BatchNorm/gamma",
        "denseblock1.denselayer1.norm1.bias": "densenet121/dense_block1/conv_block1/x1/BatchNorm/beta",
        "denseblock4.denselayer16.conv2.weight": "densenet121/dense_block4/conv_block16/x2/Conv/weights",
        "transition1.norm.running_var": "densenet121/transition_block1/blk/BatchNorm/moving_variance",
        "transition3.conv.weight": "densenet121/transition_block3/blk/Conv/weights",
        "norm5.running_mean": "densenet121/final_block/BatchNorm/moving_mean",
        "classifier.weight": "densenet121/logits/weights",
    },
    ("vgg16", "torchvision"): {
        "conv1_1.weight": "features.0.weight",
        "conv3_3.bias": "features.14.bias",
        "conv5_3.weight": "features.28.weight",
        "fc6.weight": "classifier.0.weight",
        "fc7.bias": "classifier.3.bias",
        "fc8.weight": "classifier.6.weight",
    },
    ("vgg16", "timm"): {
        "conv4_2.weight": "features.19.weight",
        "fc6.weight": "pre_logits.fc1.weight",
        "fc7.weight": "pre_logits.fc2.weight",
        "fc8.weight": "head.fc.weight",
    },
    ("vgg16", "Keras"): {
        "conv1_1.weight": "block1_conv1/kernel",
        "conv5_3.bias": "block5_conv3/bias",
        "fc6.weight": "fc1/kernel",
        "fc7.bias": "fc2/bias",
        "fc8.weight": "predictions/kernel",
    },
    ("vgg16_slim", "TF-Slim"): {
        "conv1_1.weight": "vgg_16/conv1/conv1_1/weights",
        "conv5_3.bias": "vgg_16/conv5/conv5_3/biases",
        "fc6.weight": "vgg_16/fc6/weights",
        "fc8.bias": "vgg_16/fc8/biases",
    },
    ("ssd_vgg_38", "torchvision"): {
        "conv4_3.weight": "backbone.features.21.weight",
        "conv5_1.weight": "backbone.extra.0.1.weight",
        "conv5_3.bias": "backbone.extra.0.5.bias",
        "fc6.weight": "backbone.extra.0.7.1.weight",
        "fc7.weight": "backbone.extra.0.7.3.weight",
        "conv8_1.weight": "backbone.extra.1.0.weight",
        "conv11_2.bias": "backbone.extra.4.2.bias",
        "l2norm.scale.weight": "backbone.scale_weight",
        "head0.loc.weight": "head.regression_head.module_list.0.weight",
        "head5.conf.bias": "head.classification_head.module_list.5.bias",
    },
    ("ssd_vgg_38", "ssd.pytorch"): {
        "conv1_1.weight": "vgg.0.weight",
        "conv5_3.bias": "vgg.28.bias",
        "fc6.weight": "vgg.31.weight",
        "fc7.weight": "vgg.33.weight",
        "conv8_1.weight": "extras.0.weight",
        "conv11_2.weight": "extras.7.weight",
        "l2norm.scale.weight": "L2Norm.weight",
        "head1.loc.weight": "loc.1.weight",
        "head1.conf.weight": "conf.1.weight",
    },
    ("ssd_vgg", "TF-Slim"): {
        "conv1_1.weight": "ssd_300_vgg/conv1/conv1_1/weights",
        "fc6.weight": "ssd_300_vgg/conv6/weights",
        "fc7.bias": "ssd_300_vgg/conv7/biases",
        "conv8_1.weight": "ssd_300_vgg/block8/conv1x1/weights",
        "conv11_2.bias": "ssd_300_vgg/block11/conv3x3/biases",
        "l2norm.scale.weight": "ssd_300_vgg/block4_box/L2Normalization/gamma",
        "head0.loc.weight": "ssd_300_vgg/block4_box/conv_loc/weights",
        "head1.conf.weight": "ssd_300_vgg/block7_box/conv_cls/weights",
    },
}
TENSORFLOW = ("Keras", "TF-Slim")
EPSILONS = {
    ("resnet50_v1", "Keras"): 1.001e-5,
    ("densenet121", "Keras"): 1.001e-5,
    ("densenet121_slim", "TF-Slim"): 1.1e-5,
}


def naming(network, library):
    return next(naming for naming in fs.zoo.NETWORKS[network].namings if naming.library == library)


def parameters(network):
    """Those of the network, for VGG on pictures of 64x64: a fully connected layer of 2x2x512 inputs has every case."""
    net = fs.zoo.NETWORKS[network]
    drawing = Drawing("input", (3, 64, 64) if network.startswith("vgg") else net.input_shape)
    net.draw(drawing)
    return drawing.parameters


def in_layout(array, parameter, library, name):
    """The array as the library lays it out, from the zoo's (out, in, height, width) and (out, in)."""
    if parameter.role == "scale":
        return array.ravel()
    if parameter.role != "weight":
        return array
    if array.ndim == 2 and (library == "TF-Slim" or "pre_logits" in name):  # a convolution as large as its picture
        array = array.reshape(-1, *parameter.window)
    if library not in TENSORFLOW:
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    # (out, channels x height x width) to (height x width x channels, out)
    return array.reshape(-1, *parameter.window).transpose(2, 3, 1, 0).reshape(-1, len(array))


def as_library(network, library, own):
    """The zoo's arrays under the library's names, in its layout, for its epsilon."""
    wanted, table = parameters(network), naming(network, library)
    shift = EPSILONS.get((network, library), 1e-5) - 1e-5
    result = {}
    for key, parameter in wanted.items():
        name = table.name(key, parameter.role)
        array = own[key] - np.float32(shift) if parameter.role == "variance" else own[key]
        result[name] = np.ascontiguousarray(in_layout(array, parameter, library, name))
    return result


def write(path, library, arrays):
    """The file that the library would write."""
    if library == "Keras":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                layer = name.rpartition("/")[0]
                file[f"{layer}/{name}:0"] = array
    elif library == "TF-Slim":
        write_bundle(path, arrays | {"global_step": np.array(3, np.int64)})
    else:
        safetensors.numpy.save_file(arrays, path)
    return path


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=2e-7, atol=1e-7, err_msg=name)


HEAVY = ("resnet152", "vgg", "ssd", "resnet50")


@pytest.mark.parametrize(
    ("network", "library"),
    [pytest.param(*key, marks=[pytest.mark.slow] if key[0].startswith(HEAVY) else []) for key in PROBES],
)
def test_a_file_in_a_librarys_names_and_layout_gives_the_zoos_arrays(network, library, tmp_path, caplog):
    wanted = parameters(network)
    own = random_weights(wanted, seed=1)
    theirs = as_library(network, library, own)
    for key, name in PROBES[network, library].items():
        assert name in theirs, key
    arrays = fs.zoo.read_checkpoint(write(tmp_path / "weights", library, theirs))
    namings = fs.zoo.NETWORKS[network].namings
    assert_equal(match_named(wanted, arrays, namings, network=network, what=network), own)
    assert not caplog.records


@pytest.mark.parametrize(("network", "library"), PROBES)
def test_names_are_the_librarys(network, library):
    wanted, table = parameters(network), naming(network, library)
    for key, name in PROBES[network, library].items():
        assert table.name(key, wanted[key].role) == name


def test_every_library_of_every_network_is_probed_here():
    kinds = {
        (network.partition("_slim")[0].partition("_v1")[0].partition("_38")[0], library) for network, library in PROBES
    }
    for name in ("resnet50", "densenet121", "vgg16", "ssd_vgg"):
        libraries = {naming.library for naming in fs.zoo.NETWORKS[name].namings} - {"the zoo"}
        assert {library for network, library in kinds if network == name} == libraries


@pytest.fixture(scope="module")
def dense():
    """DenseNet-121's arrays by the zoo's names."""
    return random_weights(parameters("densenet121"), seed=2)


def match(network, arrays, wanted=None):
    wanted = wanted or parameters(network)
    return match_named(wanted, arrays, fs.zoo.NETWORKS[network].namings, network=network, what=network)


def test_torchvisions_old_names_of_densenet_are_known(dense):
    arrays = as_library("densenet121", "torchvision and timm", dense)
    old = {name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): array for name, array in arrays.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert_equal(match("densenet121", old), dense)


@pytest.mark.parametrize(
    "form",
    [
        lambda name: f"{name}:0",
        lambda name: f"model_weights/{name.rpartition('/')[0]}/{name}",
        lambda name: name.replace("predictions/", "fc1000/"),
        lambda name: name.replace("conv1/conv/", "conv1_conv/").replace("conv1/bn/", "conv1_bn/"),
    ],
)
def test_other_forms_of_keras_names_are_known(dense, form):
    arrays = {form(name): array for name, array in as_library("densenet121", "Keras", dense).items()}
    assert_equal(match("densenet121", arrays), dense)


def test_keras_1_called_its_kernels_w_1():
    key = ("fc8.weight", "fc8.bias")
    wanted = {name: parameter for name, parameter in parameters("vgg16").items() if name in key}
    own = random_weights(wanted, seed=3)
    given = {"predictions/predictions_W_1:0": own["fc8.weight"].T, "predictions/predictions_b_1:0": own["fc8.bias"]}
    assert_equal(match("vgg16", given, wanted), own)


def test_what_training_leaves_beside_the_weights_is_passed_over(dense):
    arrays = as_library("densenet121_slim", "TF-Slim", dense)
    beside = {f"{name}/Momentum": array for name, array in arrays.items()} | {"global_step": np.int64(1)}
    beside |= {"densenet121/mean_rgb": np.zeros(3)}
    assert_equal(match("densenet121_slim", arrays | beside), dense)


def test_a_version_1_file_under_slims_names_loads_as_a_network(dense, tmp_path):
    path = write_version_1(tmp_path / "tf-densenet121.ckpt", as_library("densenet121_slim", "TF-Slim", dense))
    model = fs.zoo.build("densenet121_slim", path)
    got = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert_equal(got, dense)


def stem(name, weights, x, output):
    """What the network makes of `x` at the tensor `output`, on ONNX Runtime."""
    model = fs.zoo.build(name, weights)
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info(output))
    last = next(i for i, node in enumerate(model.graph.node) if node.output[0] == output)
    del model.graph.node[last + 1 :]
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})[0]


@pytest.mark.slow
def test_keras_biases_and_epsilon_come_out_in_the_normalised_stem():
    """A place of Keras' conv1 and bn1, computed from its own arrays in its own layout."""
    own = random_weights(parameters("resnet50_v1"), seed=4)
    arrays = as_library("resnet50_v1", "Keras", own)
    rng = np.random.default_rng(5)
    biases = {
        name.replace("_conv/kernel", "_conv/bias"): rng.standard_normal(array.shape[-1]).astype(np.float32)
        for name, array in arrays.items()
        if name.endswith("_conv/kernel")
    }
    arrays |= biases | {"conv1_bn/moving_variance": np.full(64, 3e-5, np.float32)}  # so small that the epsilon shows
    picture = rng.standard_normal((1, 224, 224, 3)).astype(np.float32)
    window = picture[0, 2 * 9 - 3 : 2 * 9 + 4, 2 * 20 - 3 : 2 * 20 + 4]
    convolved = (
        np.einsum("hwi,hwio->o", window.astype(np.float64), arrays["conv1_conv/kernel"]) + biases["conv1_conv/bias"]
    )
    deviation = np.sqrt(arrays["conv1_bn/moving_variance"].astype(np.float64) + 1.001e-5)
    expected = (convolved - arrays["conv1_bn/moving_mean"]) / deviation * arrays["conv1_bn/gamma"]
    expected += arrays["conv1_bn/beta"]
    got = stem("resnet50_v1", arrays, np.ascontiguousarray(picture.transpose(0, 3, 1, 2)), "bn1")[0, :, 9, 20]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("stored", ["matrix", "convolution"])
def test_tensorflows_order_of_a_flattened_picture_is_undone(stored):
    """fc6 on one picture: TensorFlow flattens (height, width, channels), ONNX (channels, height, width)."""
    wanted = {name: parameter for name, parameter in parameters("vgg16").items() if name.startswith("fc6")}
    rng = np.random.default_rng(6)
    pooled = rng.standard_normal((2, 2, 512)).astype(np.float32)
    kernel, bias = rng.standard_normal((2, 2, 512, 4096)).astype(np.float32), np.zeros(4096, np.float32)
    if stored == "matrix":
        given = {"fc1/kernel": kernel.reshape(2048, 4096), "fc1/bias": bias}
    else:
        given = {"vgg_16/fc6/weights": kernel, "vgg_16/fc6/biases": bias}
    got = match("vgg16_slim", given, wanted)
    np.testing.assert_allclose(
        pooled.transpose(2, 0, 1).ravel() @ got["fc6.weight"].T,
        pooled.ravel() @ kernel.reshape(2048, 4096),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.slow
def test_an_ssd_in_slims_names_gives_the_scores_that_its_own_layout_gives():
    """The last grid's head on one place of the picture: only the middle of its 3x3 meets anything."""
    own = random_weights(parameters("ssd_vgg"), seed=7)
    arrays = as_library("ssd_vgg", "TF-Slim", own)
    model = fs.zoo.build("ssd_vgg", arrays)
    model.graph.output.append(helper.make_empty_tensor_value_info("conv11_2.relu"))
    x = np.random.default_rng(8).standard_normal((1, 3, 300, 300), np.float32)
    *outputs, features = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})
    assert [array.shape for array in outputs] == [
        dims[1:] and (1, *dims[1:]) for dims in fs.zoo.NETWORKS["ssd_vgg"].azure.feature_dims
    ]
    middle = arrays["ssd_300_vgg/block11_box/conv_cls/weights"][1, 1]
    expected = features[0, :, 0, 0] @ middle + arrays["ssd_300_vgg/block11_box/conv_cls/biases"]
    np.testing.assert_allclose(outputs[5].ravel(), expected, rtol=1e-4, atol=1e-4)


def test_names_of_two_libraries_alike_are_refused(dense):
    both = as_library("densenet121", "Keras", dense) | dense
    message = (
        "606 names are those of the zoo .'conv0.weight'. and of Keras .'conv1/conv/kernel'. alike; keep those of one"
    )
    with pytest.raises(WeightsError, match=message):
        match("densenet121", both)


def test_convolutions_of_vgg_alone_do_not_tell_torchvision_from_timm():
    given = {"features.0.weight": np.zeros((64, 3, 3, 3)), "features.0.bias": np.zeros(64)}
    with pytest.raises(WeightsError, match=r"2 names are those of torchvision .* and of timm"):
        match("vgg16", given)


def test_names_of_no_library_are_shown_with_those_that_are_known():
    message = "vgg16: the weights hold 'a', a name of none known: the zoo .'conv1_1.weight'., torchvision .'features.0"
    with pytest.raises(WeightsError, match=message):
        match("vgg16", {"a": np.zeros(3)})


def test_errors_speak_of_the_librarys_names_and_shapes(dense):
    arrays = as_library("densenet121", "Keras", dense)
    missing = {name: array for name, array in arrays.items() if name != "bn/gamma"}
    with pytest.raises(WeightsError, match=r"needs tensor 'bn/gamma' .1024., which the weights lack"):
        match("densenet121", missing)
    with pytest.raises(WeightsError, match="'conv1/conv/kernel' is 64x3x7x7; densenet121 needs 7x7x3x64"):
        match("densenet121", arrays | {"conv1/conv/kernel": dense["conv0.weight"]})
    with pytest.raises(WeightsError, match="no tensor 'extra/kernel'"):
        match("densenet121", arrays | {"extra/kernel": np.zeros(3)})
    with pytest.raises(WeightsError, match="'bn/gamma' and 'bn/gamma:0' both mean 'bn/gamma'"):
        match("densenet121", arrays | {"bn/gamma:0": arrays["bn/gamma"]})


def test_weights_of_another_variant_load_with_a_warning(dense, caplog):
    with caplog.at_level(logging.WARNING):
        match("densenet121", as_library("densenet121_slim", "TF-Slim", dense))
    (record,) = caplog.records
    assert "those of TF-Slim, whose own weights belong to densenet121_slim" in record.getMessage()


def test_a_model_of_the_zoo_keeps_its_names_where_a_library_has_others(tmp_path):
    model = fs.zoo.build("densenet121", seed=9)
    onnx.save(model, tmp_path / "m.onnx")
    assert fs.zoo.build("densenet121", tmp_path / "m.onnx") == model
