"""Write the encoder weights of `pretrained: builtin`, trained on randomised rendered worlds.

    python -m uda_seg.train method=source_only method.strong_augment=true data=streets_random
    python scripts/make_encoder_start.py outputs/streets_random/<that run>/seed0

They replace ImageNet weights for the small networks: the same initialisation for every method, including controls and
oracle, from images of neither domain. Only the encoder is kept, not the segmentation head.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from uda_seg.models.small import BUILTIN
from uda_seg.runs.checkpoint import read_checkpoint

PREFIX = "segmentor.encoder."


def main() -> None:
    """Copy the encoder's tensors, as float16, into the package."""
    content = read_checkpoint(Path(sys.argv[1]) / "checkpoints" / "last.ckpt")
    state = {name.removeprefix(PREFIX): t for name, t in content["state_dict"].items() if name.startswith(PREFIX)}
    small = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save(small, BUILTIN)
    print(f"{BUILTIN}: {len(small)} tensors, {BUILTIN.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
