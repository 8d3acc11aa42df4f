"""A measurement of how fast networks train side by side on this machine's cores."""

from __future__ import annotations

import multiprocessing
import time

SECONDS = 4.0  # of one measurement
CROP, BATCH = 128, 4


def images_per_second(processes: int, threads: int) -> float:
    """Measure the images per second that so many processes, of so many threads each, train on together."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return sum(pool.starmap(_rate, [(threads, SECONDS)] * processes, chunksize=1))


def _rate(threads: int, seconds: float) -> float:
    """Train a small network of the kind that `daformer_lite` is made of, and return its images per second."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1)]
    for width in (32, 32, 32):  # inverted residuals: most of the time of a light network on a CPU
        layers += [nn.Conv2d(width, 6 * width, 1), nn.BatchNorm2d(6 * width), nn.ReLU6()]
        layers += [
            nn.Conv2d(6 * width, 6 * width, 3, 1, 1, groups=6 * width),
            nn.ReLU6(),
            nn.Conv2d(6 * width, width, 1),
        ]
    network, image = nn.Sequential(*layers), torch.randn(BATCH, 3, CROP, CROP)
    network(image).mean().backward()
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        network(image).mean().backward()
        done += BATCH
    return done / (time.perf_counter() - begun)
