"""The service: from a model to a URL that TensorFlow Serving's clients call.

The public names are imported when first used, so that what needs no server needs not the extra [serve] either.
"""

import importlib
from typing import Any

#: Public name -> the module of this package that holds it.
_HOMES = {
    "AccelContainerImage": "images",
    "AccelOnnxConverter": "conversion",
    "AksCompute": "compute",
    "AksWebservice": "service_kinds",
    "AsyncPredictionClient": "async_client",
    "BrainWaveStage": "stages",
    "BrainwaveImage": "images",
    "BrainwaveWebservice": "service_kinds",
    "CallError": "calls",
    "ComputeTarget": "compute",
    "CpuStage": "stages",
    "Densenet121": "models",
    "DeploymentClient": "deployment_client",
    "DeploymentConfig": "deployments",
    "EdgeService": "edge",
    "EdgeTarget": "edge",
    "FpgaStage": "stages",
    "Image": "images",
    "ImageConfiguration": "images",
    "KerasStage": "stages",
    "LocalWebservice": "service_kinds",
    "MlflowModel": "mlflow_registry",
    "MlflowRegistry": "mlflow_registry",
    "Model": "registry",
    "ModelConvertOperation": "conversion",
    "ModelDefinition": "pipeline",
    "OnnxStage": "stages",
    "PredictionClient": "client",
    "QuantizedDensenet121": "models",
    "QuantizedResnet152": "models",
    "QuantizedResnet50": "models",
    "QuantizedSsdVgg": "models",
    "QuantizedVgg16": "models",
    "Reply": "calls",
    "Resnet152": "models",
    "Resnet50": "models",
    "Result": "servables",
    "RunningImage": "images",
    "SeededWeightsWarning": "servables",
    "Servable": "servables",
    "Server": "server",
    "ServerConfig": "server",
    "Session": "symbolic",
    "Signature": "servables",
    "SsdVgg": "models",
    "TensorSpec": "servables",
    "TensorflowStage": "stages",
    "Vgg16": "models",
    "VirtualFpga": "servables",
    "Webservice": "webservices",
    "Workspace": "workspace",
    "async_client_from_service": "async_client",
    "client_from_service": "client",
    "placeholder": "symbolic",
    "preprocess_array": "preprocessing",
    "servable": "servables",
}
#: What the extra [serve] brings.
_EXTRA = {"cryptography", "google", "grpc", "grpc_health", "grpc_reflection", "ml_dtypes", "prometheus_client"}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fpgasim.service' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"fpgasim.service.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise ModuleNotFoundError(
            f"fpgasim.service.{name} needs the package {error.name!r}; pip install 'fpgasim[serve]' brings it",
            name=error.name,
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
