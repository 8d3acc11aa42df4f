"""Unsupervised domain adaptive semantic segmentation: labelled synthetic images in, a network for real ones out."""

import os
import sys

__version__ = "0.2.0"

# How long a thread of PyTorch's that waits for the others spins before it sleeps: about a millisecond. By itself it
# spins for ten, and keeps the core from whoever else wants it; `launch.threads` does more while somebody does. GNU's
# OpenMP counts rounds, LLVM's and Intel's milliseconds. They read it as they are loaded, that is with torch, and those
# of the processes that this one starts do too.
WAITING = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
if "torch" not in sys.modules and not {*WAITING, "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ.update(WAITING)
