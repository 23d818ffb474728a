"""DenseNet-121, layer by layer as torchvision names it.

Huang, Liu, van der Maaten, Weinberger: Densely Connected Convolutional Networks, CVPR 2017, table 1 (growth 32, each
layer a 1x1 bottleneck of 4 x growth before its 3x3, transitions halve the channels). Batch normalisation stands before
the convolutions, so most of it cannot be folded.

The stem pads 3 and 1 on each side (the paper, torchvision, Keras), or as TensorFlow's SAME does, which is one less
above and to the left (the TF-Slim network that Azure ran).
"""

from typing import Literal

from fpgasim.zoo.building import Drawing

Stem = Literal["even", "same"]
BLOCKS = (6, 12, 24, 16)
GROWTH = 32
BOTTLENECK = 4
STEM = 64


def dense_block(net: Drawing, x: str, name: str, layers: int) -> str:
    """Each layer reads all that came before it in the block and adds GROWTH channels."""
    parts = [x]
    for layer in (f"{name}.denselayer{i}" for i in range(1, layers + 1)):
        y = net.concat(parts, f"{layer}.concat") if len(parts) > 1 else x
        y = net.relu(net.batch_norm(y, f"{layer}.norm1"), f"{layer}.relu1")
        y = net.conv(y, f"{layer}.conv1", BOTTLENECK * GROWTH, 1)
        y = net.relu(net.batch_norm(y, f"{layer}.norm2"), f"{layer}.relu2")
        parts.append(net.conv(y, f"{layer}.conv2", GROWTH, 3, padding=1))
    return net.concat(parts, f"{name}.concat")


def transition(net: Drawing, x: str, name: str) -> str:
    """Half the channels, then half the picture."""
    x = net.relu(net.batch_norm(x, f"{name}.norm"), f"{name}.relu")
    x = net.conv(x, f"{name}.conv", net.shapes[x][0] // 2, 1)
    return net.average_pool(x, f"{name}.pool", 2, stride=2)


def densenet121(net: Drawing, *, stem: Stem) -> list[str]:
    """Draws the network and returns its outputs."""
    x = net.conv(net.input, "conv0", STEM, 7, stride=2, padding="same" if stem == "same" else 3)
    x = net.relu(net.batch_norm(x, "norm0"), "relu0")
    x = net.max_pool(x, "pool0", 3, stride=2, padding="same" if stem == "same" else 1)
    for i, layers in enumerate(BLOCKS, start=1):
        x = dense_block(net, x, f"denseblock{i}", layers)
        if i < len(BLOCKS):
            x = transition(net, x, f"transition{i}")
    x = net.relu(net.batch_norm(x, "norm5"), "relu5")
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return [net.linear(x, "classifier", 1000, output="logits")]
