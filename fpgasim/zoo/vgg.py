"""VGG-16 with biases and without batch normalisation, layers named as in the paper's configuration D.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, table 1.
"""

from fpgasim.zoo.building import Drawing, Padding

#: Channels of the 3x3 convolutions of each block; a 2x2 maximum follows each block.
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def conv_block(net: Drawing, x: str, index: int) -> str:
    """The 3x3 convolutions of block `index` (from 1), each with its ReLU."""
    for i, channels in enumerate(BLOCKS[index - 1], start=1):
        x = net.conv(x, f"conv{index}_{i}", channels, 3, padding=1, bias=True)
        x = net.relu(x, f"relu{index}_{i}")
    return x


def halve(net: Drawing, x: str, index: int, padding: Padding = 0) -> str:
    return net.max_pool(x, f"pool{index}", 2, stride=2, padding=padding)


def vgg16(net: Drawing) -> list[str]:
    """Draws the network and returns its outputs."""
    x = net.input
    for index in range(1, len(BLOCKS) + 1):
        x = halve(net, conv_block(net, x, index), index)
    x = net.flatten(x, "flatten")
    x = net.relu(net.linear(x, "fc6", 4096), "relu6")
    x = net.relu(net.linear(x, "fc7", 4096), "relu7")
    return [net.linear(x, "fc8", 1000, output="logits")]
