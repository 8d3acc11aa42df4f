"""Pretrained encoders from files: loaded safely, renamed, and loud about what did not fit."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uda_seg.cache import user_cache
from uda_seg.errors import UserError
from uda_seg.models.segmentor import Encoder

log = logging.getLogger(__name__)

# Classifiers that ImageNet / COCO files carry besides the encoder (SegFormer, torchvision, DeepLab).
CLASSIFIERS = ("head.", "fc.", "layer5.", "layer6.")
# Wrappers, outer to inner: DataParallel, self-training's students (ours, and the released ones'), the file of DeepLab's
# ImageNet weights, mmseg's and our own segmentors.
PREFIXES = ("module.", "model.", "segmentor.", "Scale.", "backbone.", "encoder.")


@dataclass(frozen=True)
class LoadReport:
    """What became of a weights file: tensors loaded, classifier tensors dropped, names nobody wanted."""

    path: Path
    loaded: int
    dropped: int
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One line for the log."""
        unused = f", {len(self.unused)} unused (first: {self.unused[0]})" if self.unused else ""
        source = f"encoder weights: {self.loaded} tensors from {self.path}"
        return f"{source}, {self.dropped} of a classifier dropped{unused}"


def load_encoder(encoder: Encoder, path: str | Path) -> LoadReport:
    """Fill all of an encoder from a file (NVlabs `mit_b*.pth`, ResNet or DeepLab files, or a segmentor's).

    Args:
        encoder: its `pretrained` becomes true, unless the start is the built-in one.
        path: `imagenet`, `builtin`, or a file of tensors, possibly below `state_dict` or `model`, with a known prefix.

    Returns:
        The report, also written to the log.

    Raises:
        UserError: no such file, a file with pickled objects, or one that does not fill the whole encoder.
    """
    rendered = str(path) == "builtin"
    path = start_of(encoder, str(path))
    found = _unwrap(read_tensors(path))
    wanted = encoder.state_dict()
    # Files older than batch norm's step counter lack it, and it is used by nothing here.
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        have = len(wanted) - len(missing)
        raise UserError(
            f"{path}: fills {have} of the encoder's {len(wanted)} tensors, first missing: "
            f"{', '.join(missing[:3])}; give weights of the same variant (pretrained=FILE)"
        )
    for name, tensor in wanted.items():
        if name in found and found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} is {tuple(found[name].shape)}, the encoder wants {tuple(tensor.shape)}; "
                "give weights of the same variant (pretrained=FILE)"
            )
    encoder.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})
    encoder.pretrained = not rendered
    extra = [name for name in found if name not in wanted]
    unused = tuple(name for name in extra if not name.startswith(CLASSIFIERS))
    report = LoadReport(path, sum(name in found for name in wanted), len(extra) - len(unused), unused)
    log.info("%s", report)
    return report


def start_of(encoder: Encoder, name: str) -> Path:
    """The file behind `imagenet` (in the user's cache folder), `builtin` (inside the package) or a path.

    Raises:
        UserError: the encoder has no such start, or its file has not been fetched.
    """
    if name == "builtin":
        if encoder.builtin is None:
            raise UserError("pretrained=builtin fits model=daformer_small alone: say pretrained=null or a file")
        return encoder.builtin
    if name != "imagenet":
        return Path(name)
    if encoder.imagenet is None:
        raise UserError("there are no ImageNet weights for this encoder: say pretrained=null or pretrained=FILE")
    path = user_cache() / "weights" / encoder.imagenet
    if not path.is_file():
        raise UserError(f"ImageNet weights are missing: put {encoder.imagenet} at {path}, or say pretrained=FILE")
    return path


def read_tensors(path: Path) -> Mapping[str, object]:
    """Read a PyTorch file that holds nothing but tensors and plain values.

    Raises:
        UserError: the file is missing, broken, or holds pickled objects (which could run code).
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file; mend pretrained=FILE or leave it out") from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not loaded, because it is broken or holds pickled objects that could run code; "
            "save its state_dict alone with torch.save"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: not a readable PyTorch weights file ({error}); fetch it again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state_dict; save a state_dict")
    return content


def _unwrap(content: Mapping[str, object]) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            # In a segmentor's file the other names (its decoder) stay as they are and are reported as unused.
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
