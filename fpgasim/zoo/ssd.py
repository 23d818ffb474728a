"""SSD 300 on VGG-16: scores and boxes of six grids, before softmax and decoding.

Liu, Anguelov, Erhan, Szegedy, Reed, Fu, Berg: SSD: Single Shot MultiBox Detector, ECCV 2016, figure 2 and section 3;
the L2 normalisation of block 4 and its initial scale are from Liu, Rabinovich, Berg: ParseNet, arXiv 1506.04579, 3.3.
Outputs stand as in Azure's SSD-VGG: six of class scores (N, grid, grid, anchors, classes), finest grid first, then six
of box offsets (N, grid, grid, anchors, 4).

The paper's first grid is 38x38 (8,732 boxes). Azure's is 37x37 (8,432 boxes) before a second of 19x19; that comes out
when the third maximum drops the odd row and column of its 75x75 input and the fourth keeps that of its 37x37.
"""

from typing import Literal

from fpgasim.zoo.boxes import GRIDS, LABELS
from fpgasim.zoo.building import Drawing
from fpgasim.zoo.vgg import conv_block, halve

Grid = Literal[37, 38]
#: The blocks that the grids are read from.
BLOCKS = (4, 7, 8, 9, 10, 11)
#: Blocks after the backbone: index -> channels of its 1x1 and of its 3x3, stride and padding of the 3x3.
EXTRAS = {8: (256, 512, 2, 1), 9: (128, 256, 2, 1), 10: (128, 256, 1, 0), 11: (128, 256, 1, 0)}
#: Names of the outputs, in Azure's order.
OUTPUTS = (*(f"block{block}_scores" for block in BLOCKS), *(f"block{block}_boxes" for block in BLOCKS))
L2_SCALE = 20.0


def ssd_vgg(net: Drawing, *, grid: Grid) -> list[str]:
    """Draws the network for 300x300 pictures, whose first grid is `grid` wide, and returns its outputs."""
    blocks, x = {}, net.input
    for index in range(1, 5):
        x = blocks[index] = conv_block(net, x, index)
        x = halve(net, x, index, 0 if index == 3 and grid == 37 else "same")
    x = net.max_pool(conv_block(net, x, 5), "pool5", 3, stride=1, padding=1)
    x = net.relu(net.conv(x, "fc6", 1024, 3, padding=6, dilation=6, bias=True), "relu6")
    x = blocks[7] = net.relu(net.conv(x, "fc7", 1024, 1, bias=True), "relu7")
    for index, (narrow, wide, stride, padding) in EXTRAS.items():
        x = net.relu(net.conv(x, f"conv{index}_1", narrow, 1, bias=True), f"conv{index}_1.relu")
        x = net.conv(x, f"conv{index}_2", wide, 3, stride=stride, padding=padding, bias=True)
        x = blocks[index] = net.relu(x, f"conv{index}_2.relu")
    x = net.l2_normalize(blocks[4], "l2norm")
    blocks[4] = net.scale(x, "l2norm.scale", L2_SCALE)
    for i, (block, anchors) in enumerate(zip(BLOCKS, GRIDS, strict=True)):
        _head(net, blocks[block], f"head{i}.loc", anchors.boxes, 4, f"block{block}_boxes")
        _head(net, blocks[block], f"head{i}.conf", anchors.boxes, len(LABELS), f"block{block}_scores")
    return list(OUTPUTS)


def _head(net: Drawing, x: str, name: str, boxes: int, values: int, output: str) -> None:
    x = net.conv(x, name, boxes * values, 3, padding=1, bias=True)
    _, height, width = net.shapes[x]
    x = net.channels_last(x, f"{name}.nhwc")
    net.reshape(x, f"{name}.reshape", (height, width, boxes, values), output=output)
