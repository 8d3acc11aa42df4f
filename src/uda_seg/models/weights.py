"""Loading of pretrained encoders: safe, renamed, and strict about tensors that do not fit."""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from uda_seg.errors import Damaged, UserError
from uda_seg.models.hub import fetch
from uda_seg.models.naming import from_transformers
from uda_seg.models.segmentor import Encoder
from uda_seg.storage.files import check_zip, first_line, open_file
from uda_seg.storage.user_cache import user_cache

log = logging.getLogger(__name__)

ZIP = b"PK\x03\x04"  # first bytes of archives written by torch.save
# File names that contain the file's SHA-256; at least one letter, or it could be a date.
HASHED = re.compile(r"([0-9a-f]{64})|.*-(?=[a-f]*[0-9])(?=[0-9]*[a-f])([0-9a-f]{8,64})\.\w+")
# Classifiers in ImageNet / COCO files besides the encoder (SegFormer, torchvision, DeepLab, transformers, timm).
CLASSIFIERS = ("head.", "fc.", "layer5.", "layer6.", "classifier.", "conv_head.", "bn2.")
# Wrapper prefixes, outer to inner: DataParallel, self-training's students (ours, and the released ones'), transformers,
# the file of DeepLab's ImageNet weights, mmseg's, smp's and our own segmentors.
PREFIXES = ("module.", "model.", "segmentor.", "segformer.", "Scale.", "backbone.", "encoder.")
# Training programs also store scores as NumPy scalars. Unpickling one interprets a few bytes and calls nothing that the
# file names. Files of NumPy 1 refer to `numpy.core`.
_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]


@dataclass(frozen=True)
class LoadReport:
    """Summary of loading a weights file.

    Attributes:
        path: the file.
        loaded: number of loaded tensors of the encoder.
        dropped: number of ignored classifier tensors.
        unused: names of other tensors without a counterpart.
        allowed: names of the encoder that keep their random start because `allow_missing` lists them.
    """

    path: Path
    loaded: int
    dropped: int
    unused: tuple[str, ...]
    allowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Summarise the loading in one line."""
        unused = f", {len(self.unused)} unused (first: {self.unused[0]})" if self.unused else ""
        fresh = f", {len(self.allowed)} LEFT UNTRAINED as allowed: {_first(self.allowed)}" if self.allowed else ""
        dropped = f", {self.dropped} of a classifier dropped" if self.dropped else ""
        return f"encoder weights: {self.loaded} tensors from {self.path}{dropped}{unused}{fresh}"


def load_encoder(
    encoder: Encoder, path: str | Path, allow_missing: Sequence[str] = (), verified: bool = False
) -> LoadReport:
    """Load all of an encoder's weights from a file of any supported library.

    Supported are NVlabs' `mit_b*.pth`, smp's and transformers' SegFormer encoders, ResNet and DeepLab files (ImageNet
    and COCO), and checkpoints of whole segmentors.

    Args:
        encoder: its `pretrained` is set to true, except for the built-in weights.
        path: `imagenet`, `builtin`, `hub:owner/repository[@revision]`, or a file of tensors (safetensors or PyTorch),
            possibly nested under `state_dict` or `model` and with a known prefix.
        allow_missing: names of tensors or whole modules that the file may lack.
        verified: the file's digest has been checked.

    Returns:
        The report, which is also logged.

    Raises:
        UserError: no such file, a file with pickled objects, or one that does not cover the whole encoder.
    """
    rendered, said = str(path) == "builtin", str(path)
    path = start_of(encoder, str(path))
    wanted = encoder.state_dict()
    found = encoder.renamed(_unwrap(read_tensors(path, verified=verified), wanted))
    # Files older than batch norm's step counter lack it; nothing here uses it.
    lacking = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    missing, allowed = split_missing(lacking, wanted, allow_missing)
    if missing:
        have = len(wanted) - len(lacking)
        raise UserError(
            f"{path}: fills {have} of the encoder's {len(wanted)} tensors, first missing: {_first(missing)}; give "
            "weights of the same variant (pretrained=FILE), or allow it by name (pretrained_allow_missing=[...])"
        )
    for name, tensor in wanted.items():
        if name in found and found[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} is {tuple(found[name].shape)}, the encoder wants {tuple(tensor.shape)}; "
                "give weights of the same variant (pretrained=FILE)"
            )
    check_tensors(found, wanted, path)
    encoder.load_state_dict({name: found.get(name, tensor) for name, tensor in wanted.items()})
    encoder.pretrained, encoder.loaded_from = not rendered, said
    extra = [name for name in found if name not in wanted]
    unused = tuple(name for name in extra if not name.startswith(CLASSIFIERS))
    report = LoadReport(path, sum(n in found for n in wanted), len(extra) - len(unused), unused, tuple(allowed))
    log.log(logging.WARNING if allowed else logging.INFO, "%s", report)
    return report


def split_missing(
    lacking: Sequence[str], wanted: Iterable[str], allow_missing: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Split the `lacking` names into those that are required and those that may be missing.

    Args:
        lacking: names without a tensor in the file.
        wanted: all names of the encoder.
        allow_missing: names of tensors or modules of the encoder.

    Raises:
        UserError: an allowed name that the encoder does not have.
    """
    wanted = list(wanted)

    def inside(name: str, module: str) -> bool:
        return name == module or name.startswith(f"{module}.")

    for module in allow_missing:
        if not any(inside(name, module) for name in wanted):
            modules = {name.rpartition(".")[0] for name in wanted}
            near = difflib.get_close_matches(module, [*wanted, *modules], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it begins with {wanted[0]}"
            raise UserError(f"pretrained_allow_missing: the encoder has no {module}{hint}")
    allowed = [name for name in lacking if any(inside(name, module) for module in allow_missing)]
    return [name for name in lacking if name not in allowed], allowed


def start_of(encoder: Encoder, name: str) -> Path:
    """Resolve `imagenet` (user's cache folder), `builtin` (inside the package), `hub:...` or a path to a file.

    Raises:
        UserError: the encoder has no such weights, or the file has not been downloaded.
    """
    if name.startswith("hub:"):
        return fetch(name.removeprefix("hub:"))
    if name.startswith("timm:"):
        raise UserError(f"pretrained={name}: that is for model=timm; give this encoder hub:owner/repository or a file")
    if name == "builtin":
        if encoder.builtin is None:
            raise UserError(
                "pretrained=builtin fits model=daformer_small and hrda_small alone: say pretrained=null or a file"
            )
        return encoder.builtin
    if name != "imagenet":
        return Path(name)
    if encoder.imagenet is None:
        raise UserError("there are no ImageNet weights for this encoder: say pretrained=null or pretrained=FILE")
    path = user_cache() / "weights" / encoder.imagenet
    if not path.is_file():
        raise UserError(
            f"ImageNet weights are missing: put {encoder.imagenet} at {path}, or say pretrained=FILE or "
            "pretrained=hub:owner/repository"
        )
    return path


def read_tensors(
    path: Path,
    cure: str = "fetch it again",
    absent: str = "correct pretrained=FILE or leave it out",
    verified: bool = False,
) -> Mapping[str, object]:
    """Read a file of tensors and plain values: safetensors, or either PyTorch format.

    PyTorch does not verify the checksums of its archives, so damage inside a tensor would go unnoticed: they are
    verified here. safetensors and PyTorch's format before 1.6 have none; see `check_digest` for a partial substitute
    where the caller has not `verified` a digest.

    Raises:
        UserError: the file is missing, damaged, or contains pickled objects (which could run code).
    """
    try:
        content: object
        with open_file(path) as file:
            zipped = file.read(len(ZIP)) == ZIP
            file.seek(0)
            if zipped:
                # PyTorch never compresses its archives, so one that unpacks to more was not written by it.
                checked = check_zip(file, path, cure, most=os.fstat(file.fileno()).st_size)
            else:
                checked = check_digest(path, file, cure)
            if path.suffix == ".safetensors":
                content = safetensors.torch.load_file(path)
            else:
                with torch.serialization.safe_globals(HARMLESS):
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; {absent}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name the file of weights in it") from None
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        holds = f"pickled objects ({named[1]})" if named else "pickled objects"
        raise UserError(
            f"{path}: not loaded, because it is broken or holds {holds} that could run code; {cure}, or "
            "save its state_dict alone with torch.save"
        ) from error
    except Exception as error:  # a truncated file can raise anything
        raise Damaged(f"{path}: not a readable weights file, maybe cut short ({first_line(error)}); {cure}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a state_dict; save a state_dict")
    if not (checked or verified):
        log.info("%s has no checksums: damage inside a tensor would go unnoticed", path)
    return content


def check_digest(path: Path, file: BufferedReader, cure: str) -> bool:
    """Verify a file without checksums by the SHA-256 in its name, and return whether the name has one.

    The hub's cache names files by their SHA-256, and `torch.hub` appends its first digits (`resnet101-5d3b4d8f.pth`).

    Raises:
        Damaged: the content does not match the name.
    """
    found = HASHED.fullmatch(path.resolve().name)
    if found is None:
        return False
    digest = found[1] or found[2]
    if not hashlib.file_digest(file, "sha256").hexdigest().startswith(digest):
        raise Damaged(
            f"{path} is damaged: its SHA-256 does not begin with {digest[:16]}, which its name says; {cure}, or rename "
            "it if that is no digest"
        )
    file.seek(0)
    return True


def check_tensors(found: Mapping[str, object], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Check that entries are usable weights, whatever their shape; names in only one of the two are skipped.

    Raises:
        UserError: an entry that is not a tensor, not finite, or of an incompatible dtype or layout.
    """
    for name, tensor in wanted.items():
        if name in found and (wrong := _complaint(found[name], tensor)) is not None:
            raise Damaged(f"{path}: {name} {wrong}: damaged, or saved by a run that diverged; use another file")


def _complaint(found: object, wanted: Tensor) -> str | None:
    if not isinstance(found, Tensor):
        return f"is a {type(found).__name__}, not a tensor"
    if found.is_meta or found.layout != torch.strided or found.is_quantized or found.is_nested:
        return "is not a plain tensor in memory"
    if (found.is_floating_point(), found.is_complex()) != (wanted.is_floating_point(), wanted.is_complex()):
        return f"holds {found.dtype}, not {wanted.dtype}"
    if found.is_floating_point() and found.shape == wanted.shape and not is_finite(found):
        return "is not finite (NaN or infinity)"
    return None


def is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; usually the sum suffices, without a mask as large as the tensor."""
    tensor = tensor if tensor.element_size() > 1 else tensor.float()
    return bool(tensor.sum(dtype=torch.float32).isfinite() or tensor.float().isfinite().all())


def tensors_of(content: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors of a file, those under `state_dict` or `model` if it has such a key."""
    for key in ("state_dict", "model"):
        inner = content.get(key)
        if isinstance(inner, Mapping):
            content = inner
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _unwrap(content: Mapping[str, object], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = tensors_of(content)
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            # In a segmentor's file all other names (its decoder) are kept and reported as unused.
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    tensors = from_transformers(tensors)
    first = {name.partition(".")[0] for name in tensors}
    if len(first) == 1 and not any(name in tensors for name in wanted):
        # DeepLab's ImageNet weights circulate under several names.
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    return tensors


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
