"""Train an image classifier, export it to one certified ONNX file, and serve it over gRPC.

A name is imported when it is first used: the bare install has the client, the other functions need an extra.

Example::

    import evalmode

    model = evalmode.load("models/cats")
    print(model.predict("cat.jpg").label)

    with evalmode.Client("127.0.0.1:8001") as client:
        print(client.predict("cat.jpg").label)
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evalmode.certification.compare import Comparison, compare
    from evalmode.certification.foreign import certify_tensors
    from evalmode.certification.preprocessing import ClassifierOptions, Preprocessing
    from evalmode.certification.verdicts import Verdict
    from evalmode.certification.verdicts import check_file as check
    from evalmode.client import AsyncClient, CallFailed, Client
    from evalmode.errors import DataError, EvalmodeError, ProofFailed, UsageError
    from evalmode.images.contract import PixelContract, Resize
    from evalmode.limits import Limits
    from evalmode.loading import load
    from evalmode.prediction import Prediction
    from evalmode.runtime.explanation import Explanation
    from evalmode.runtime.model import Model
    from evalmode.workflow import certify, export, train
    from serving.embedded import serve, start_server
    from serving.server import Server
    from training.callbacks import Callbacks
    from training.errors import ExportRefused, TrainingDiverged
    from training.interrupts import TrainingStopped
    from training.networks.backbone import Backbone
    from training.publish import Artifact
    from training.run import Run

__version__ = "0.3.0"
__all__ = [
    "Artifact",
    "AsyncClient",
    "Backbone",
    "CallFailed",
    "Callbacks",
    "ClassifierOptions",
    "Client",
    "Comparison",
    "DataError",
    "EvalmodeError",
    "Explanation",
    "ExportRefused",
    "Limits",
    "Model",
    "PixelContract",
    "Prediction",
    "Preprocessing",
    "ProofFailed",
    "Resize",
    "Run",
    "Server",
    "TrainingDiverged",
    "TrainingStopped",
    "UsageError",
    "Verdict",
    "certify",
    "certify_tensors",
    "check",
    "compare",
    "export",
    "load",
    "serve",
    "start_server",
    "train",
]

# Name -> the module that holds it and its name there, and the extra that it needs.
_SOURCES = {
    "Artifact": ("training.publish:Artifact", "serve,train"),
    "AsyncClient": ("evalmode.client:AsyncClient", ""),
    "Backbone": ("training.networks.backbone:Backbone", "serve,train"),
    "CallFailed": ("evalmode.client:CallFailed", ""),
    "Callbacks": ("training.callbacks:Callbacks", ""),
    "ClassifierOptions": ("evalmode.certification.preprocessing:ClassifierOptions", "serve"),
    "Client": ("evalmode.client:Client", ""),
    "Comparison": ("evalmode.certification.compare:Comparison", "serve"),
    "DataError": ("evalmode.errors:DataError", ""),
    "EvalmodeError": ("evalmode.errors:EvalmodeError", ""),
    "Explanation": ("evalmode.runtime.explanation:Explanation", "serve"),
    "ExportRefused": ("training.errors:ExportRefused", ""),
    "Limits": ("evalmode.limits:Limits", ""),
    "Model": ("evalmode.runtime.model:Model", "serve"),
    "PixelContract": ("evalmode.images.contract:PixelContract", "serve"),
    "Prediction": ("evalmode.prediction:Prediction", ""),
    "Preprocessing": ("evalmode.certification.preprocessing:Preprocessing", "serve"),
    "ProofFailed": ("evalmode.errors:ProofFailed", ""),
    "Resize": ("evalmode.images.contract:Resize", "serve"),
    "Run": ("training.run:Run", "serve,train"),
    "Server": ("serving.server:Server", "serve"),
    "TrainingDiverged": ("training.errors:TrainingDiverged", ""),
    "TrainingStopped": ("training.interrupts:TrainingStopped", ""),
    "UsageError": ("evalmode.errors:UsageError", ""),
    "Verdict": ("evalmode.certification.verdicts:Verdict", "serve"),
    "certify": ("evalmode.workflow:certify", "serve"),
    "certify_tensors": ("evalmode.certification.foreign:certify_tensors", "serve"),
    "check": ("evalmode.certification.verdicts:check_file", "serve"),
    "compare": ("evalmode.certification.compare:compare", "serve"),
    "export": ("evalmode.workflow:export", "serve,train"),
    "load": ("evalmode.loading:load", "serve"),
    "serve": ("serving.embedded:serve", "serve"),
    "start_server": ("serving.embedded:start_server", "serve"),
    "train": ("evalmode.workflow:train", "serve,train"),
}
# Modules that import torch, which training sets up while it is imported.
_TORCH_MODULES = ("training.networks.backbone", "training.publish", "training.run")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, as PEP 562 provides."""
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from evalmode.errors import EvalmodeError, NameUnavailable

    try:
        value = _import(name)
    except (EvalmodeError, ModuleNotFoundError) as error:
        if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
            raise  # Python would replace an AttributeError in ``from evalmode import name`` by one without the reason
        raise NameUnavailable(str(error)) from error
    globals()[name] = value
    return value


def _import(name: str) -> Any:
    """Import a public name."""
    from evalmode.own_packages import import_own

    source, extra = _SOURCES[name]
    module, _, attribute = source.partition(":")
    try:
        if module in _TORCH_MODULES:
            import_own("training.torch_runtime").import_torch()
        return getattr(import_own(module), attribute)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").partition(".")[0] in (__name__, "serving", "training"):
            raise
        raise ModuleNotFoundError(
            f"evalmode.{name} needs the Python package {error.name!r}: pip install 'evalmode[{extra}]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
