"""EfficientNet-Lite0, with the parameter names of the public PyTorch conversions of Google's checkpoint.

Tan, Le: EfficientNet, ICML 2019, table 1; the Lite variant (github.com/tensorflow/tpu, efficientnet/lite) drops
squeeze-and-excitation, uses ReLU6 and keeps stem and head unscaled. Padding is TensorFlow's SAME.
"""

from typing import NamedTuple

from fpgasim.zoo.building import Drawing


class Stage(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
EPSILON = 1e-3


def inverted_residual(net: Drawing, x: str, name: str, stage: Stage, stride: int) -> str:
    """1x1 expansion, depthwise convolution, 1x1 projection; the input is added where the shape stays."""
    y, channels = x, net.shapes[x][0]
    hidden = channels * stage.expansion
    if stage.expansion != 1:
        y = net.conv(y, f"{name}._expand_conv", hidden, 1)
        y = net.relu6(net.batch_norm(y, f"{name}._bn0", epsilon=EPSILON), f"{name}._relu0")
    y = net.conv(y, f"{name}._depthwise_conv", hidden, stage.kernel, stride=stride, padding="same", groups=hidden)
    y = net.relu6(net.batch_norm(y, f"{name}._bn1", epsilon=EPSILON), f"{name}._relu1")
    y = net.conv(y, f"{name}._project_conv", stage.channels, 1)
    y = net.batch_norm(y, f"{name}._bn2", epsilon=EPSILON)
    return net.add(y, x, f"{name}._add") if net.shapes[y] == net.shapes[x] else y


def efficientnet_lite(net: Drawing, *, stages: tuple[Stage, ...] = LITE0, classes: int = 1000) -> list[str]:
    """Draws the network and returns its outputs."""
    x = net.conv(net.input, "_conv_stem", 32, 3, stride=2, padding="same")
    x = net.relu6(net.batch_norm(x, "_bn0", epsilon=EPSILON), "_relu0")
    block = 0
    for stage in stages:
        for repeat in range(stage.repeats):
            x = inverted_residual(net, x, f"_blocks.{block}", stage, stage.stride if repeat == 0 else 1)
            block += 1
    x = net.conv(x, "_conv_head", 1280, 1)
    x = net.relu6(net.batch_norm(x, "_bn1", epsilon=EPSILON), "_relu1")
    x = net.flatten(net.global_average_pool(x, "_avg_pooling"), "_flatten")
    return [net.linear(x, "_fc", classes, output="logits")]
