"""What the libraries call the layers of the zoo's networks: one table for each library and kind of network.

torchvision 0.3 to 0.2x (vgg.py, resnet.py, densenet.py, detection/ssd.py), timm (vgg.py; its ResNets and DenseNets have
torchvision's names), Keras 1 to 3 (applications), TF-Slim (nets/resnet_v1.py, vgg.py), pudae/tensorflow-densenet, and
for SSD balancap/SSD-Tensorflow, from which Azure's comes, and amdegroot/ssd.pytorch.
"""

from fpgasim.zoo.naming import Leaves, Naming
from fpgasim.zoo.ssd import BLOCKS, EXTRAS

KERAS = Leaves("/kernel", "/bias", "/gamma", "/beta", "/moving_mean", "/moving_variance")
SLIM = Leaves(
    "/weights", "/biases", "/BatchNorm/gamma", "/BatchNorm/beta",
    "/BatchNorm/moving_mean", "/BatchNorm/moving_variance",
)  # fmt: skip
KERAS_EPSILON = 1.001e-5
#: HDF5 puts the layer's name before the variable's; Keras 1 wrote <layer>_W_1 and <layer>_b_1; a saved model has the
#: weights in a group of their own; the last layer has been called three things.
KERAS_ALIASES = (
    (r":0$", ""),
    (r"^model_weights/", ""),
    (r"^([^/]+)/\1_W_1$", r"\1/kernel"),
    (r"^([^/]+)/\1_b_1$", r"\1/bias"),
    (r"^(.+)/\1/", r"\1/"),
    (r"^(probs|fc1000)/", "predictions/"),
)
KERAS_UNUSED = r"^(optimizer_weights|top_level_model_weights)/"
SLIM_ALIASES = ((r":0$", ""),)
#: What TensorFlow keeps beside the weights while it trains.
SLIM_UNUSED = (
    r"(^|/)(global_step|mean_rgb|beta[12]_power)$|/(Momentum|Adam|Adam_1|RMSProp|RMSProp_1|ExponentialMovingAverage)$"
)

_BLOCK = r"layer(?P<s>\d)\.(?P<b>\d+)"
_DENSE = r"denseblock(?P<b>\d)\.denselayer(?P<i>\d+)"
_VGG_CONV = r"conv(?P<b>[1-5])_(?P<i>\d)"
_EXTRA_CONV = r"conv(?P<b>8|9|10|11)"
#: Place of each convolution of VGG-16 in PyTorch's list of layers, where ReLUs and maxima count.
_VGG_INDEX = {
    "conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14,
    "conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24, "conv5_2": 26, "conv5_3": 28,
}  # fmt: skip
_VGG_FEATURES = tuple((own, f"features.{index}") for own, index in _VGG_INDEX.items())
_SSD_EXTRAS = tuple(f"conv{block}_{i}" for block in EXTRAS for i in (1, 2))


def resnet(depth: int) -> tuple[Naming, ...]:
    """The namings of ResNet-`depth`. Keras' convolutions have biases, and its normalisations another epsilon."""
    slim = f"resnet_v1_{depth}"
    return (
        Naming("torchvision and timm"),
        Naming(
            "Keras",
            (
                (r"conv1", "conv1_conv"),
                (r"bn1", "conv1_bn"),
                (rf"{_BLOCK}\.conv(?P<i>\d)", "conv{s1}_block{b1}_{i}_conv"),
                (rf"{_BLOCK}\.bn(?P<i>\d)", "conv{s1}_block{b1}_{i}_bn"),
                (rf"{_BLOCK}\.downsample\.0", "conv{s1}_block{b1}_0_conv"),
                (rf"{_BLOCK}\.downsample\.1", "conv{s1}_block{b1}_0_bn"),
                (r"fc", "predictions"),
            ),
            KERAS,
            aliases=KERAS_ALIASES,
            unused=KERAS_UNUSED,
            channels_last=True,
            epsilon=KERAS_EPSILON,
            folded_bias=(r"_bn/moving_mean$", "_conv/bias"),
            network=f"resnet{depth}_v1",
        ),
        Naming(
            "TF-Slim",
            (
                (r"conv1|bn1", f"{slim}/conv1"),
                (rf"{_BLOCK}\.(?:conv|bn)(?P<i>\d)", slim + "/block{s}/unit_{b1}/bottleneck_v1/conv{i}"),
                (rf"{_BLOCK}\.downsample\.[01]", slim + "/block{s}/unit_{b1}/bottleneck_v1/shortcut"),
                (r"fc", f"{slim}/logits"),
            ),
            SLIM,
            aliases=SLIM_ALIASES,
            unused=SLIM_UNUSED,
            channels_last=True,
            network=f"resnet{depth}_slim",
        ),
    )


DENSENET121 = (
    Naming("the zoo"),
    Naming(
        "torchvision and timm",
        ((r"(?!classifier).*", "features.{own}"),),
        # torchvision before 0.3, and the files it published then
        aliases=((r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),),
    ),
    Naming(
        "Keras",
        (
            (r"conv0", "conv1/conv"),
            (r"norm0", "conv1/bn"),
            (rf"{_DENSE}\.norm1", "conv{b1}_block{i}_0_bn"),
            (rf"{_DENSE}\.conv1", "conv{b1}_block{i}_1_conv"),
            (rf"{_DENSE}\.norm2", "conv{b1}_block{i}_1_bn"),
            (rf"{_DENSE}\.conv2", "conv{b1}_block{i}_2_conv"),
            (r"transition(?P<b>\d)\.norm", "pool{b1}_bn"),
            (r"transition(?P<b>\d)\.conv", "pool{b1}_conv"),
            (r"norm5", "bn"),
            (r"classifier", "predictions"),
        ),
        KERAS,
        aliases=(*KERAS_ALIASES, (r"^conv1_(conv|bn)/", r"conv1/\1/")),  # Keras 3 allows no / in a layer's name
        unused=KERAS_UNUSED,
        channels_last=True,
        epsilon=KERAS_EPSILON,
        network="densenet121",
    ),
    Naming(
        "TF-Slim",
        (
            (r"conv0", "densenet121/conv1"),
            (r"norm0", "densenet121"),
            (rf"{_DENSE}\.norm(?P<k>\d)", "densenet121/dense_block{b}/conv_block{i}/x{k}"),
            (rf"{_DENSE}\.conv(?P<k>\d)", "densenet121/dense_block{b}/conv_block{i}/x{k}/Conv"),
            (r"transition(?P<b>\d)\.norm", "densenet121/transition_block{b}/blk"),
            (r"transition(?P<b>\d)\.conv", "densenet121/transition_block{b}/blk/Conv"),
            (r"norm5", "densenet121/final_block"),
            (r"classifier", "densenet121/logits"),
        ),
        SLIM,
        aliases=SLIM_ALIASES,
        unused=SLIM_UNUSED,
        channels_last=True,
        epsilon=1.1e-5,
        network="densenet121_slim",
    ),
)

VGG16 = (
    Naming("the zoo"),
    Naming("torchvision", (*_VGG_FEATURES, ("fc6", "classifier.0"), ("fc7", "classifier.3"), ("fc8", "classifier.6"))),
    Naming("timm", (*_VGG_FEATURES, ("fc6", "pre_logits.fc1"), ("fc7", "pre_logits.fc2"), ("fc8", "head.fc"))),
    Naming(
        "Keras",
        ((_VGG_CONV, "block{b}_conv{i}"), ("fc6", "fc1"), ("fc7", "fc2"), ("fc8", "predictions")),
        KERAS,
        aliases=KERAS_ALIASES,
        unused=KERAS_UNUSED,
        channels_last=True,
    ),
    Naming(
        "TF-Slim",
        ((_VGG_CONV, "vgg_16/conv{b}/conv{b}_{i}"), *((fc, f"vgg_16/{fc}") for fc in ("fc6", "fc7", "fc8"))),
        SLIM,
        aliases=SLIM_ALIASES,
        unused=SLIM_UNUSED,
        channels_last=True,
        network="vgg16_slim",
    ),
)

SSD_VGG = (
    Naming("the zoo"),
    Naming(
        "torchvision",
        (
            *((own, f"backbone.features.{index}") for own, index in _VGG_INDEX.items() if index < 23),
            # Its second part begins with the fourth maximum, number 23, and ends with a list of its own.
            *((own, f"backbone.extra.0.{index - 23}") for own, index in _VGG_INDEX.items() if index > 23),
            ("fc6", "backbone.extra.0.7.1"),
            ("fc7", "backbone.extra.0.7.3"),
            *((own, f"backbone.extra.{1 + i // 2}.{i % 2 * 2}") for i, own in enumerate(_SSD_EXTRAS)),
            (r"head(?P<i>\d)\.loc", "head.regression_head.module_list.{i}"),
            (r"head(?P<i>\d)\.conf", "head.classification_head.module_list.{i}"),
        ),
        whole=(("l2norm.scale.weight", "backbone.scale_weight"),),
        network="ssd_vgg_38",
    ),
    Naming(
        "ssd.pytorch",
        (
            *((own, f"vgg.{index}") for own, index in _VGG_INDEX.items()),
            ("fc6", "vgg.31"),
            ("fc7", "vgg.33"),
            *((own, f"extras.{i}") for i, own in enumerate(_SSD_EXTRAS)),
            (r"head(?P<i>\d)\.loc", "loc.{i}"),
            (r"head(?P<i>\d)\.conf", "conf.{i}"),
        ),
        whole=(("l2norm.scale.weight", "L2Norm.weight"),),
        network="ssd_vgg_38",
    ),
    Naming(
        "TF-Slim",
        (
            (_VGG_CONV, "ssd_300_vgg/conv{b}/conv{b}_{i}"),
            ("fc6", "ssd_300_vgg/conv6"),
            ("fc7", "ssd_300_vgg/conv7"),
            (rf"{_EXTRA_CONV}_1", "ssd_300_vgg/block{b}/conv1x1"),
            (rf"{_EXTRA_CONV}_2", "ssd_300_vgg/block{b}/conv3x3"),
            *((rf"head{i}\.loc", f"ssd_300_vgg/block{block}_box/conv_loc") for i, block in enumerate(BLOCKS)),
            *((rf"head{i}\.conf", f"ssd_300_vgg/block{block}_box/conv_cls") for i, block in enumerate(BLOCKS)),
        ),
        SLIM,
        whole=(("l2norm.scale.weight", "ssd_300_vgg/block4_box/L2Normalization/gamma"),),
        aliases=SLIM_ALIASES,
        unused=SLIM_UNUSED,
        channels_last=True,
    ),
)
