"""Unsupervised domain adaptive semantic segmentation: labelled synthetic images in, a network for real ones out."""

import os
import sys

__version__ = "0.1.0"

# A thread of PyTorch's that waits for the others by spinning holds the core that they need, for milliseconds at a time,
# whenever another process is on it. So it spins for a quarter of one and then sleeps; without any spinning an idle
# machine would be slower by a half (docs/benchmarks.md). GNU's OpenMP counts rounds, LLVM's and Intel's
# milliseconds. They read it as they are loaded, that is with torch, and the processes that this one starts do too.
WAITING = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}
if "torch" not in sys.modules and not {*WAITING, "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ.update(WAITING)
