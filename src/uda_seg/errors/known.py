"""Known exceptions of libraries, and their one-line messages."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import platform
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uda_seg.errors import RankLost, UserError

log = logging.getLogger(__name__)


LOG = "error.log"  # traceback of an unknown error, in the run's folder


LONGEST = 300  # maximum length of a library's message in a line


class Known(NamedTuple):
    """A known exception and its message.

    Attributes:
        raised: pattern of its class or a base class, `module.Class`.
        text: pattern to search in its text, with named groups for the line.
        line: defect and cure; `{said}` is the library's own message.
        kind: exception to raise.
        through: a package that must be in the traceback.
    """

    raised: str
    text: str
    line: str
    kind: type[UserError] = UserError
    through: str = ""


_RESULTS = (
    "choose another folder with hydra.run.dir=... or output=... (results), or UDA_SEG_CACHE (what is kept between runs)"
)


_FILE = r"(?P<why>[^:\n]*)(: (?P<quote>['\"])(?P<file>[^\n]*?)(?P=quote))?"  # after the number of an OSError


# The first match counts. Texts are those of PyTorch 2.11 to 2.15, Lightning 2.6, timm 1.0, W&B 0.21 and later; a
# message reworded by a later version becomes an unknown error again, which is longer but never wrong.
KNOWN = (
    Known(
        r"",
        r"(out of|insufficient|allocate|open|mmap) shared memory|/dev/shm|[Bb]us error|torch_shm|0 items of ancdata",
        "the loaders' processes have no room in shared memory ({said}): use fewer of them with data.workers=N (0: "
        "none), or give /dev/shm more room (docker run --shm-size=8g)",
    ),
    Known(
        r"RuntimeError|OSError|AcceleratorError",
        r"(CUDA|HIP|XPU|MPS)\b.*out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED",
        "the GPU's memory is full ({said}): make data.crop, data.source_batch or data.target_batch smaller, take each "
        "batch in parts with optimizer.accumulate=2, or model.activation_checkpointing=true; in "
        "validation, predict and evaluate: evaluator=slide, evaluator.windows_per_batch=1 and data.val_batch=1",
    ),
    Known(
        r"MemoryError|RuntimeError|OSError|cv2\.error",
        r"\[Errno 12\]|can't allocate memory|[Uu]nable to allocate|Insufficient memory|Cannot allocate memory|"
        r"not enough memory|^MemoryError",
        "main memory is full ({said}): use fewer loaders with data.workers=N (0: none), keep no images in memory with "
        "data.cache=none, or make data.crop, data.source_batch or data.target_batch smaller",
    ),
    Known(
        r"RuntimeError|OSError",
        r"\[Errno 24\]|[Tt]oo many open files",
        "too many files are open ({said}): allow more of them with `ulimit -n 65535`, or use fewer loaders with "
        "data.workers=N",
    ),
    Known(
        r"RuntimeError|OSError",
        r"\[Errno 11\]|can't start new thread|libgomp: Thread creation failed",
        "no further process or thread can be started here ({said}): use fewer loaders with data.workers=N (0: none), "
        "or allow more with `ulimit -u`",
    ),
    Known(
        r"RuntimeError",
        r"DataLoader worker .*(killed by signal|exited unexpectedly)|Pin memory thread exited",
        "a loader's process has ended ({said}), most often because main memory ran out: use fewer of them with "
        "data.workers=N (0: none), or data.cache=none; continue from the last checkpoint with resume=last",
    ),
    Known(
        r"RuntimeError|OSError",
        rf"\[Errno (28|122|27)\] {_FILE}|PytorchStreamWriter failed|inline_container",
        f"{{file}} cannot be written ({{said}}): make room, or {_RESULTS}",
    ),
    Known(
        r"OSError",
        rf"\[Errno (1|13|30)\] {_FILE}",
        f"{{file}}: {{why}}: allow it, or {_RESULTS}",
    ),
    Known(
        r"OSError",
        rf"\[Errno (17|20|21|36|40)\] {_FILE}",
        f"{{file}}: {{why}}: move away what is there, or {_RESULTS}",
    ),
    Known(
        r"FileNotFoundError",
        rf"\[Errno 2\] {_FILE}",
        f"{{file}}: {{why}}: if it was moved or deleted meanwhile, bring it back; if it is to be made, {_RESULTS}",
    ),
    Known(
        r"OSError",
        rf"\[Errno (5|103|107|110|112|113|116|121)\] {_FILE}",
        "{file}: {why}: the disk, or the network it is behind, does not answer; try again with resume=last",
    ),
    Known(
        r"ValueError",
        r"Expected more than 1 (value per channel|spatial element) when training, got input size torch.Size\(\["
        r"(?P<size>[\d, ]+)\]\)",
        "normalisation has a single value of a channel to work with (a map of [{size}]): make data.crop larger, or let "
        "more images through the network at once: data.source_batch and data.target_batch over optimizer.accumulate",
    ),
    Known(
        r"AssertionError",
        r"Input (image )?(height|width) \(\d+\) doesn't match model \((?P<own>\d+)\)",
        "this model.encoder.name only accepts images of {own} pixels ({said}): set data.crop=[{own},{own}], "
        "evaluator=slide and evaluator.window=[{own},{own}], or choose an encoder for any size",
    ),
    Known(
        r"AssertionError|RuntimeError|ValueError",
        r"(must|should) be divisible by|must match the size of tensor|is invalid for input of size|not match model",
        "this model.encoder.name does not accept images of this size ({said}): give data.crop and the sizes of the "
        "images as multiples of its patches and windows, or choose an encoder for any size",
        through="timm",
    ),
    Known(
        r"RuntimeError",
        r"Kernel size can't be greater than|Output size is too small|Padding size should be less than|"
        r"non-zero size for input|must be greater than zero",
        "these images are too small for the network ({said}): make data.crop larger",
    ),
    Known(
        r"wandb\.",
        r"(?i)api[ _]?key|logged in|wandb login|401|403|permission",
        "W&B: not logged in ({said}): run `wandb login` or set WANDB_API_KEY; logger.mode=offline writes into the "
        "run's folder alone",
    ),
    Known(
        r"wandb\.",
        r"",
        "W&B: {said}; logger.mode=offline writes only to the run's folder, logger=csv does without",
    ),
    Known(
        r"RuntimeError|ValueError",
        r"You set `--ntasks|configured in SLURM",
        "SLURM's tasks are not those of trainer.devices and trainer.num_nodes ({said}): start the ranks with "
        "srun --nodes=N --ntasks-per-node=D",
    ),
    Known(r"RuntimeError|MisconfigurationException", r"conditioned on metric|the monitored key", "callbacks: {said}"),
    Known(r"MisconfigurationException", r"", "trainer: {said}"),
    Known(r"TypeError|ValueError", r"selected with `?\w+Accelerator", "trainer: {said}"),
    Known(
        r"RuntimeError|ValueError",
        r"(?i)\bgloo\b|nccl|tcpstore|(server|client) socket|rendezvous|connection (closed|reset|refused)",
        "the ranks cannot communicate ({said}): another one has ended or hangs, see its own output; or "
        "MASTER_ADDR and MASTER_PORT are not within reach of all machines. trainer.timeout is how long is waited",
        RankLost,
    ),
    Known(
        r"RuntimeError|AssertionError|AcceleratorError",
        r"no kernel image is available|driver version is insufficient|driver on your system is too old|"
        r"no NVIDIA driver|device\(s\) is/are busy|invalid device ordinal|not compiled with CUDA",
        "the GPU cannot be used ({said}): install the build of torch for its driver, choose another one with "
        "trainer.devices=[N], or use trainer=cpu",
    ),
    Known(
        r"RuntimeError",
        r"CUBLAS_WORKSPACE_CONFIG",
        "trainer.deterministic=true needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment",
    ),
    Known(
        r"RuntimeError",
        r"does not have a deterministic implementation",
        "{said}: take trainer.deterministic=warn, or trainer.accelerator=cpu",
    ),
    Known(
        r"torch\._(dynamo|inductor)\.",
        r"",
        "model.compile=true: {said}; leave it out, or find what fails with model.compile_backend=eager",
    ),
    Known(
        r"(urllib|requests|httpx|httpcore|huggingface_hub|ssl|_ssl|socket)\.",
        r"",
        "a download failed ({said}): try again with network access, or give a file (docs/recipes.md, Weights)",
    ),
    Known(
        r"ModuleNotFoundError",
        r"No module named '(?P<name>(?!uda_seg)[^'.]+)",
        "{name} is not installed: pip install {name}, or the extra that has it (docs/usage.md, Install)",
    ),
    Known(
        r"omegaconf\.errors\.|hydra\.errors\.(?!InstantiationException)",
        r"",
        "configuration: {said}",
    ),
)


def user_error(error: BaseException | None) -> UserError | None:
    """Find the UserError that `error` is or was raised from (by Hydra's instantiate), or match a known exception.

    A UserError from a loader's worker arrives with a traceback as its text, which ends in the line.

    Returns:
        A UserError of one line; None for an unknown error.
    """
    for link in _chain(error):
        if isinstance(link, RankLost):
            return link
        if isinstance(link, UserError):
            return UserError(str(link).rpartition(f"{type(link).__name__}: ")[2].strip())
    return next((line for link in _chain(error) if (line := _recognised(link)) is not None), None)


def told(error: BaseException, folder: Path | None, loud: bool = False) -> UserError:
    """Convert any error to one line, writing the traceback of an unknown one to a file that the line names.

    Args:
        error: the exception.
        folder: folder of the run, for `error.log`; None: the folder for temporary files.
        loud: also print the traceback, of every error.
    """
    if loud:
        traceback.print_exception(error)
    if (line := user_error(error)) is not None:
        return line
    file = _keep(error, folder)
    return UserError(
        f"{type(error).__name__}: {_said(error)}; unexpected error: its traceback is in {file}, please report it "
        "with that file (HYDRA_FULL_ERROR=1 prints it here)"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _recognised(error: BaseException) -> UserError | None:
    classes = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-1]]
    text = str(error) or type(error).__name__
    for known in KNOWN:
        if not any(re.search(known.raised, name) for name in classes) or not _ran(known.through, error):
            continue
        if (found := re.search(known.text, text)) is not None:
            groups = {"file": None, "why": None} | found.groupdict()
            words = {name: value or "a file" for name, value in groups.items()}
            return known.kind(known.line.format(said=_said(error), **words))
    return None


def _ran(package: str, error: BaseException) -> bool:
    """Return whether a package is in the traceback of an error."""
    frames = traceback.walk_tb(error.__traceback__) if package else ()
    return not package or any(f.f_globals.get("__name__", "").partition(".")[0] == package for f, _ in frames)


def _said(error: BaseException) -> str:
    """Return the library's own message; for a loader's worker, the line after its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1 if any("Traceback (most recent call last)" in line for line in lines) else 0].rstrip(". :;")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def _keep(error: BaseException, folder: Path | None) -> Path:
    """Append the traceback to the file and return its path."""
    stamp = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("uda_seg", "torch"))
    head = f"{stamp}  {shlex.join(sys.argv)}\n{versions} python {platform.python_version()} {platform.platform()}\n"
    text = head + "".join(traceback.format_exception(error)) + "\n"
    elsewhere = Path(tempfile.gettempdir()) / f"uda_seg-{os.getpid()}-{LOG}"
    for file in (elsewhere,) if folder is None else (folder / LOG, elsewhere):
        try:
            with file.open("a", encoding="utf-8", errors="backslashreplace") as log:
                log.write(text)
        except OSError:
            continue
        return file
    traceback.print_exception(error)  # print it if no file can be written
    return Path("the lines above")
