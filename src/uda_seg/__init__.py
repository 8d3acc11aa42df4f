"""Unsupervised domain adaptive semantic segmentation: from labelled synthetic images to a network for real ones."""

import os
import sys

__version__ = "0.2.0"

# A waiting OpenMP thread spins for about a millisecond before it sleeps. The default of ten keeps the core from other
# processes; `launch.threads` does more while there are any. GNU's OpenMP counts rounds, LLVM's and Intel's
# milliseconds. The variables are read when the library is loaded with torch, also in child processes.
WAITING = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}
if "torch" not in sys.modules and not {*WAITING, "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ.update(WAITING)
# OpenCV prints a line of its own about whatever it cannot decode; which file that is, and what to do, ours says.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
