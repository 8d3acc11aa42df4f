"""Class-text embeddings from OpenCLIP or a file, and controls for the contribution of text."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uda_seg.errors import Damaged, UserError
from uda_seg.storage.files import CACHE, LARGEST, check_zip, first_line, open_file, write_whole
from uda_seg.storage.user_cache import user_cache

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("class_text_minilm.npz")
SOURCES = ("openclip", "file", "shuffled", "openclip-shuffled", "random")
RANDOM_WIDTH = 1024  # width of OpenCLIP ViT-H-14's joint embedding


@dataclass(frozen=True)
class TextEmbeddings:
    """One text vector per class.

    Attributes:
        vectors: float32 [K, D], not normalised.
        provenance: one line naming the model and the prompts.
    """

    vectors: Tensor
    provenance: str


def text_embeddings(
    source: str,
    words: Sequence[str],
    *,
    template: str = "a photo of a {}.",
    model: str = "ViT-H-14",
    tag: str = "laion2b_s32b_b79k",
    file: str | Path | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> TextEmbeddings:
    """Embed the prompt of every class word.

    Args:
        source: "openclip" (the text tower of `model`); "file" (vectors stored by prompt); "shuffled" and
            "openclip-shuffled" (the same vectors, permuted so that no class keeps its own); "random" (Gaussian).
        words: one word per class, in train-id order.
        template: prompt with {} for the word.
        model: an OpenCLIP architecture.
        tag: an OpenCLIP pretrained tag, or a weights file.
        file: an .npz as written by `save_text`; default: the MiniLM vectors shipped with the package.
        cache: folder for OpenCLIP's vectors; default: the user's cache folder.
        seed: for the shuffle and the random vectors.

    Raises:
        UserError: unknown source, a prompt without a vector, or unavailable CLIP weights.
    """
    prompts = [template.format(word) for word in words]
    if source == "random":
        return _random(len(prompts), seed)
    if source in ("file", "shuffled"):
        text = load_text(Path(file) if file is not None else SHIPPED, prompts)
    elif source in ("openclip", "openclip-shuffled"):
        text = _cached_openclip(prompts, model, tag, cache or user_cache())
    else:
        raise UserError(f"method.text={source} is none of {', '.join(SOURCES)}")
    return _shuffled(text, seed) if source.endswith("shuffled") else text


def save_text(path: Path, prompts: Sequence[str], vectors: Tensor, provenance: str, licence: str) -> None:
    """Write vectors [K, D] by prompt, atomically, as plain arrays (loading them runs no code)."""
    stream = io.BytesIO()
    np.savez(
        stream,
        prompts=np.array(prompts),
        vectors=vectors.float().numpy(),
        provenance=np.array(provenance),
        licence=np.array(licence),
    )
    write_whole(path, stream.getvalue(), cure=CACHE)


def load_text(path: Path, prompts: Sequence[str]) -> TextEmbeddings:
    """Read the vectors of these prompts from a file written by `save_text`.

    Raises:
        UserError: the file is missing or broken, or a prompt is not in it.
    """
    rows, vectors, provenance = _read(path)
    missing = [prompt for prompt in prompts if prompt not in rows]
    if missing:
        raise UserError(
            f"{path}: has no vector for {missing[0]!r} ({len(missing)} of {len(prompts)} prompts missing); "
            "make a file for these classes with scripts/make_class_text.py of the source repository, and give it as "
            "method.text_file"
        )
    return TextEmbeddings(vectors[[rows[prompt] for prompt in prompts]], provenance)


def _read(path: Path) -> tuple[dict[str, int], Tensor, str]:
    """Read a file of `save_text` with verified checksums: row of every prompt, vectors [K, D], provenance."""
    cure = "write it again with save_text"
    try:
        with open_file(path) as file:
            check_zip(file, path, cure, LARGEST)
            with np.load(file, allow_pickle=False) as content:
                prompts = [str(prompt) for prompt in content["prompts"]]
                vectors = torch.from_numpy(np.asarray(content["vectors"], dtype=np.float32))
                provenance = str(content["provenance"])
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of class-text vectors (method.text_file)") from None
    except Exception as error:  # a malformed array can raise anything
        raise Damaged(f"{path}: not a file of class-text vectors ({first_line(error)}); {cure}") from error
    if vectors.dim() != 2 or len(vectors) != len(prompts) or not vectors.numel() or not vectors.isfinite().all():
        raise Damaged(f"{path}: not a file of one finite vector for each of its prompts; {cure}")
    return {prompt: row for row, prompt in enumerate(prompts)}, vectors, provenance


def _cached_openclip(prompts: list[str], model: str, tag: str, cache: Path) -> TextEmbeddings:
    weights = Path(tag)
    identity = [model, tag, *prompts]
    if weights.is_file():  # size and time enter the key, because the content can change under the same name
        stat = weights.stat()
        identity += [str(stat.st_size), str(stat.st_mtime_ns)]
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    path = cache / "text" / f"{model.replace('/', '_')}-{digest}.npz"
    if path.exists():
        try:
            return load_text(path, prompts)
        except Damaged as error:
            log.warning("%s: it is computed again", error)
    vectors = _encode_openclip(prompts, model, tag)
    provenance = f"OpenCLIP {model} {weights.name if weights.is_file() else tag}"
    save_text(path, prompts, vectors, provenance, "see the licence of these OpenCLIP weights")
    return load_text(path, prompts)


@torch.no_grad()
def _encode_openclip(prompts: list[str], model: str, tag: str) -> Tensor:
    import open_clip  # takes seconds to import and is needed once per set of prompts

    try:
        clip = open_clip.create_model(model, pretrained=tag, require_pretrained=True)
    except Exception as error:  # a download fails in as many ways as there are network stacks
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"OpenCLIP {model} with weights {tag!r} cannot be loaded ({reason}); run once with network, name a"
            " downloaded weights file (method.text_tag), or use the shipped vectors (method.text=file)"
        ) from error
    vectors: Tensor = clip.eval().encode_text(open_clip.get_tokenizer(model)(prompts))
    return vectors.float()


def _random(count: int, seed: int) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, RANDOM_WIDTH, generator=generator) / RANDOM_WIDTH**0.5
    return TextEmbeddings(vectors, f"random Gaussian vectors, seed {seed}")


def _shuffled(text: TextEmbeddings, seed: int) -> TextEmbeddings:
    # A single random cycle through all classes leaves no class with its own vector.
    order = torch.randperm(len(text.vectors), generator=torch.Generator().manual_seed(seed))
    vectors = torch.empty_like(text.vectors)
    vectors[order] = text.vectors[order.roll(1)]
    return TextEmbeddings(vectors, f"{text.provenance}, shuffled among the classes, seed {seed}")
