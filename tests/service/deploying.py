"""Models that are registered in a moment, and services whose processes are ended whatever a test does."""

import contextlib
import signal

import numpy as np

from fpgasim.service import CpuStage, FpgaStage, Model, ModelDefinition, Webservice
from fpgasim.service.processes import Status

from . import calling, small

#: On a machine that is busy with other tests too.
PATIENCE_S = 300
X = np.float32([[1, 2, 3, 4]])


def answer(scale):
    return X @ calling.WEIGHTS * np.float32(scale)


def registered(workspace, folder, scale=1.0, name="linear"):
    """The model y = x w * scale, registered."""
    return Model.register(workspace, calling.linear(folder / f"{scale}.onnx", scale), name)


def pictures(workspace, folder):
    """A pipeline from encoded pictures to three classes, registered."""
    definition = ModelDefinition("pictures", labels=["a", "b", "c"])
    definition.pipeline += [
        CpuStage(small.PICTURES, output="tensors:0"),
        FpgaStage(small.featurizer(), name="features", layout="NHWC"),
        CpuStage(small.classifier(), layout="NHWC", name="classes"),
    ]
    definition.save(folder / "service_def.zip")
    return Model.register(workspace, folder / "service_def.zip", "pictures")


def processes(service):
    """Watcher and replicas, those that run."""
    status = Status.read(service.folder)
    found = [] if status is None else [status.watcher, *(replica.process for replica in status.replicas)]
    return [process for process in found if process is not None and process.alive]


@contextlib.contextmanager
def cleaned(workspace):
    """Ends what services of `workspace` run, at the end."""
    try:
        yield workspace
    finally:
        for service in Webservice.list(workspace):
            left = processes(service)
            try:
                service.delete()
            finally:
                for process in left:
                    process.signal(signal.SIGKILL)
