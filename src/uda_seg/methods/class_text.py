"""Class-text embeddings of LC-MSM, made when training starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from uda_seg.methods.options.lcmsm import LCMSMOptions
from uda_seg.models.text import TextEmbeddings, text_embeddings


def class_text(options: LCMSMOptions, seed: int) -> Callable[[Sequence[str]], TextEmbeddings] | None:
    """Return what embeds the classes' names as configured; None for the control without text."""
    if options.text == "none":
        return None
    o = options
    return partial(text_embeddings, o.text, model=o.text_model, tag=o.text_tag, file=o.text_file, seed=seed)
