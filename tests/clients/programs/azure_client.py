"""The file of Azure's published package that has its PredictionClient, unmodified and without the rest of the SDK."""

import importlib.util
import os
import site
from pathlib import Path


def load(path):
    """The module in the file at `path` below site-packages, as that package's own file."""
    import tensorflow_stand_in  # noqa: F401

    found = next(Path(folder, path) for folder in site.getsitepackages() if Path(folder, path).exists())
    spec = importlib.util.spec_from_file_location(path.removesuffix(".py").replace("/", "."), found)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trust(certificates):
    """Trusts these certificates, as users of a client without such an argument do."""
    if certificates:
        os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = certificates
