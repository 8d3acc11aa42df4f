"""Files of exported networks: ONNX, `torch.export`, and safetensors."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.export import ExportedProgram

from uda_seg.errors import UserError
from uda_seg.exporting.compare import Run
from uda_seg.exporting.graph import quiet

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST_ONNX = 2**31 - 2**20  # bytes; the format's messages are limited to 2 GiB
DESCRIPTION = "uda_seg.json"  # the description inside a .pt2


def need_onnx() -> None:
    """Raise UserError if a package that writes or checks ONNX is missing."""
    if missing := [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install '.[export]' in the checkout")


def write_onnx(program: ExportedProgram, path: Path, output: str, described: Mapping[str, Any]) -> None:
    """Write a captured graph as ONNX: input `image`, output named after what it is, description in its metadata.

    Raises:
        UserError: more weights than the format holds in one file, or an operation that it lacks.
    """
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size > LARGEST_ONNX:
        raise UserError(f"format=onnx holds 2 GB in a file, and the network has {size / 1e9:.1f}: say torch_export")
    with torch.no_grad(), quiet():
        found = torch.onnx.export(
            program, dynamo=True, verbose=False, input_names=["image"], output_names=[output], optimize=True
        )
    assert found is not None
    for key, value in described.items():
        found.model.metadata_props[f"uda_seg.{key}"] = json.dumps(value)
    found.save(path, external_data=False)


def run_onnx(path: Path) -> Run:
    """Open an ONNX file with onnxruntime on the CPU."""
    import onnxruntime  # takes a second, and nothing else needs it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {"image": image.numpy()})[0]))

    return run


def write_torch_export(program: ExportedProgram, path: Path, described: Mapping[str, Any]) -> None:
    """Write a captured graph for `torch.export.load`, with its description inside."""
    with path.open("wb") as file, quiet():
        torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(described)})


def run_torch_export(path: Path) -> Run:
    """Load a file that `write_torch_export` has just written."""
    with path.open("rb") as file, quiet():
        module = torch.export.load(file).module()

    def run(image: Tensor) -> Tensor:
        result: Tensor = module(image)
        return result

    return run


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, described: Mapping[str, Any]) -> str:
    """Write tensors with a description in the header, and return the file's SHA-256 in hexadecimal."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = safetensors.torch.save(plain, {"format": "pt", **{k: json.dumps(v) for k, v in described.items()}})
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
