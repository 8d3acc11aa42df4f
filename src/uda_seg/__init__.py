"""Unsupervised domain adaptive semantic segmentation: from labelled synthetic images to a network for real ones."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# A waiting OpenMP thread spins for about a millisecond before it sleeps. The default of ten keeps the core from other
# processes; `launch.threads` does more while there are any. GNU's OpenMP counts rounds, LLVM's and Intel's
# milliseconds. The variables are read when the library is loaded with torch, also in child processes.
WAITING = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
if "torch" not in sys.modules and not {*WAITING, "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ.update(WAITING)
# Silence OpenCV's messages about undecodable files: our errors name the file and the cure.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")

if TYPE_CHECKING:
    from uda_seg.callbacks.watch import Watch as Watch
    from uda_seg.cli.command import compose as compose
    from uda_seg.data.datamodule import UDADataModule as UDADataModule
    from uda_seg.data.labels import CAMVID as CAMVID
    from uda_seg.data.labels import CITYSCAPES as CITYSCAPES
    from uda_seg.data.labels import ClassSet as ClassSet
    from uda_seg.errors import UserError as UserError
    from uda_seg.evaluation.evaluator import SegmentationEvaluator as SegmentationEvaluator
    from uda_seg.methods.base import Batch as Batch
    from uda_seg.methods.base import Loss as Loss
    from uda_seg.methods.base import Plan as Plan
    from uda_seg.methods.base import UDAModule as UDAModule
    from uda_seg.methods.options.base import MethodOptions as MethodOptions
    from uda_seg.models.segmentor import Segmentor as Segmentor
    from uda_seg.runs.build import build_data as build_data
    from uda_seg.runs.build import build_module as build_module
    from uda_seg.runs.build import build_trainer as build_trainer
    from uda_seg.runs.trained import TrainedSegmentor as TrainedSegmentor
    from uda_seg.runs.trained import load as load

# Modules of the public names, imported on first access, so that `import uda_seg` is cheap and the variables above are
# set before torch is loaded.
_HOMES = {
    "callbacks.watch": ("Watch",),
    "cli.command": ("compose",),
    "data.datamodule": ("UDADataModule",),
    "data.labels": ("CAMVID", "CITYSCAPES", "ClassSet"),
    "errors": ("UserError",),
    "evaluation.evaluator": ("SegmentationEvaluator",),
    "methods.base": ("Batch", "Loss", "Plan", "UDAModule"),
    "methods.options.base": ("MethodOptions",),
    "models.segmentor": ("Segmentor",),
    "runs.build": ("build_data", "build_module", "build_trainer"),
    "runs.trained": ("TrainedSegmentor", "load"),
}
_PUBLIC = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
