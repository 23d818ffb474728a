"""What Azure's FPGA service called the five networks: its classes, versions, tensors and where it cut them.

From the PyPI package azureml-accel-models 1.62.0 (azureml.accel.models). The FPGA ran a network from `input` to
`features`, the CPU the classifier behind them. Dimensions are TensorFlow's (batch, height, width, channels), None the
batch.
"""

from dataclasses import dataclass

from fpgasim.zoo.boxes import output_shapes
from fpgasim.zoo.ssd import BLOCKS

Dims = tuple[int | None, ...]

#: What the input and a single output of the FPGA's part were called, whichever network it was.
INPUT = "InputImage:0"
OUTPUT = "brainwave_target_node_1_Version_0.1:0"


@dataclass(frozen=True)
class AzureModel:
    """One of Azure's classes: `Resnet50` and such, with the reference and the version its files were filed under."""

    name: str
    ref: str
    version: str


@dataclass(frozen=True)
class Azure:
    """One of the five networks in Azure's service; `network` is the one of the zoo that equals it.

    `classifier_input` is the feature tensor of the default classifier, `classifier_output` its result: probabilities
    where `probabilities` says so, else logits; None for a network that had no classifier. Pictures are RGB, the mean
    taken off, times `scaling_factor`.
    """

    network: str
    save_name: str
    model: AzureModel
    quantized: AzureModel
    features: tuple[str, ...]
    feature_dims: tuple[Dims, ...]
    classifier_input: str | None = None
    classifier_output: str | None = None
    probabilities: bool = False
    input_dims: Dims = (None, 224, 224, 3)
    scaling_factor: float = 1.0
    input: str = INPUT

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that the FPGA's part of a converted network gave: an SSD's had names of their own."""
        return (OUTPUT,) if self.classifier_input else self.features


def _classified(
    name: str, save_name: str, versions: tuple[str, str], tensors: tuple[str, str], channels: int, folder: str,
    scaling_factor: float = 1.0,
) -> Azure:  # fmt: skip
    """A network with a default classifier; `folder` and `versions` are those of the class and its quantized form."""
    feature, result = tensors
    return Azure(
        network=f"{save_name}_slim",
        save_name=save_name,
        model=AzureModel(name, folder, versions[0]),
        quantized=AzureModel(f"Quantized{name}", f"msfp{folder}", versions[1]),
        features=(feature,),
        feature_dims=((None, 1, 1, channels),),
        classifier_input=feature,
        classifier_output=result,
        probabilities=result.endswith("Softmax:0"),
        scaling_factor=scaling_factor,
    )


RESNET50 = _classified(
    "Resnet50", "resnet50", ("1.1.3", "1.1.2"),
    ("resnet_v1_50/pool5:0", "resnet_v1_50/predictions/Softmax:0"), 2048, "rn50",
)  # fmt: skip
RESNET152 = _classified(
    "Resnet152", "resnet152", ("1.1.2", "1.1.3"),
    ("resnet_v1_152/pool5:0", "resnet_v1_152/predictions/Softmax:0"), 2048, "rn152",
)  # fmt: skip
DENSENET121 = _classified(
    "Densenet121", "densenet121", ("1.1.4", "1.1.4"),
    ("densenet121/final_block/global_avg_pool/Mean:0", "densenet121/predictions/Softmax:0"), 1024, "dn121", 0.017,
)  # fmt: skip
VGG16 = _classified("Vgg16", "vgg16", ("1.1.3", "1.1.2"), ("vgg_16/fc7/Relu:0", "vgg_16/fc8/squeezed:0"), 4096, "vgg16")
SSD_VGG = Azure(
    network="ssd_vgg",
    save_name="ssd_vgg",
    model=AzureModel("SsdVgg", "vggssd", "1.1.3"),
    quantized=AzureModel("QuantizedSsdVgg", "msfpvggssd", "1.1.3"),
    features=tuple(f"ssd_300_vgg/block{block}_box/Reshape{which}:0" for which in ("_1", "") for block in BLOCKS),
    feature_dims=tuple((None, *shape) for shape in output_shapes()),
    input_dims=(None, 300, 300, 3),
)
