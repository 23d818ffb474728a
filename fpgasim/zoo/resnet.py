"""ResNet-50 in the three variants in use, with torchvision's names for the parameters.

He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, CVPR 2016, table 1. They differ in where a bottleneck
that halves the picture does so:

    v1      the first 1x1 of a stage's first block (the paper, Caffe, Keras)
    v1.5    the 3x3 of a stage's first block (torchvision, NVIDIA, MLPerf)
    slim    the 3x3 of a stage's last block, with the shortcut subsampled (TF-Slim `resnet_v1_50`, used by Azure)
"""

from typing import Literal

from fpgasim.zoo.building import Drawing

Variant = Literal["v1", "v1.5", "slim"]
EXPANSION = 4


def bottleneck(net: Drawing, x: str, name: str, width: int, *, stride: int, project: bool, variant: Variant) -> str:
    """1x1, 3x3, 1x1 beside a shortcut, which is projected by a 1x1 where the channels change."""
    stride1, stride2 = (stride, 1) if variant == "v1" else (1, stride)
    y = net.conv(x, f"{name}.conv1", width, 1, stride=stride1)
    y = net.relu(net.batch_norm(y, f"{name}.bn1"), f"{name}.relu1")
    y = net.conv(y, f"{name}.conv2", width, 3, stride=stride2, padding=1)
    y = net.relu(net.batch_norm(y, f"{name}.bn2"), f"{name}.relu2")
    y = net.conv(y, f"{name}.conv3", width * EXPANSION, 1)
    y = net.batch_norm(y, f"{name}.bn3")
    if project:
        x = net.conv(x, f"{name}.downsample.0", width * EXPANSION, 1, stride=stride)
        x = net.batch_norm(x, f"{name}.downsample.1")
    elif stride > 1:
        x = net.max_pool(x, f"{name}.subsample", 1, stride=stride)
    return net.relu(net.add(y, x, f"{name}.add"), f"{name}.relu3")


def resnet(net: Drawing, *, blocks: tuple[int, int, int, int], variant: Variant, classes: int = 1000) -> list[str]:
    """Draws the network and returns its outputs."""
    x = net.conv(net.input, "conv1", 64, 7, stride=2, padding=3)
    x = net.relu(net.batch_norm(x, "bn1"), "relu1")
    # TF-Slim pools with TensorFlow's SAME, which pads only below and to the right here.
    x = net.max_pool(x, "maxpool", 3, stride=2, padding="same" if variant == "slim" else 1)
    for stage, count in enumerate(blocks, start=1):
        # Stage 1 follows the pooling, so the variants that halve first do not halve there; TF-Slim spares the last one.
        halving = None if stage == (4 if variant == "slim" else 1) else count - 1 if variant == "slim" else 0
        for block in range(count):
            x = bottleneck(
                net, x, f"layer{stage}.{block}", 32 * 2**stage,
                stride=2 if block == halving else 1, project=block == 0, variant=variant,
            )  # fmt: skip
    x = net.flatten(net.global_average_pool(x, "avgpool"), "flatten")
    return [net.linear(x, "fc", classes, output="logits")]
