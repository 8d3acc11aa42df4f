"""The pretrained part of an encoder: its layers, freezing it, and what copies of a network share of it.

An encoder that holds its pretrained network as `trunk` has it frozen and adapted by `adapt`. `Encoder.frozen` lists
what is frozen; student, teacher and reference hold these tensors once (`shared_copy`), and checkpoints not at all
(`methods.frozen_trunk`).
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from timm.models import group_parameters
from timm.utils.model import freeze as freeze_module
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.models.lora import KEY as LORA
from uda_seg.models.lora import Adapter, LoRASettings, add_adapters, lora_settings
from uda_seg.models.segmentor import Encoder, Segmentor

FREEZE = "model.encoder.freeze"

Network = TypeVar("Network", bound=nn.Module)


def vit_of(encoder: nn.Module) -> nn.Module | None:
    """Return an encoder's plain vision transformer as timm builds it, None if it has none."""
    trunk = getattr(encoder, "trunk", None)
    known = isinstance(trunk, nn.Module) and all(hasattr(trunk, n) for n in ("blocks", "patch_embed", "group_matcher"))
    return trunk if known else None


def prefix_of(encoder: nn.Module, module: nn.Module) -> str:
    """Return what the names of a module's tensors begin with in an encoder: a dotted name and a dot, or nothing."""
    name = next(name for name, found in encoder.named_modules() if found is module)
    return f"{name}." if name else ""


def depth_of(vit: nn.Module) -> int:
    """Return the number of blocks."""
    blocks: Any = vit.blocks
    return len(blocks)


def layer_ids(vit: nn.Module) -> dict[str, int]:
    """Return parameter -> layer by timm's grouping: 0 the embeddings, i + 1 block i, the final norm with the last."""
    matcher: Any = vit.group_matcher
    found: dict[str, int] = group_parameters(vit, matcher(coarse=False), reverse=True)
    return found


def undecayed(vit: nn.Module) -> set[str]:
    """Return the parameters without weight decay: timm's list, all tokens, and vectors (norms, LayerScale, biases)."""
    listed: set[str] = getattr(vit, "no_weight_decay", set)()
    # Position embedding and tokens, of which timm's list lacks some, belong to the transformer itself.
    return {name for name, p in vit.named_parameters() if p.ndim <= 1 or "." not in name} | listed


# ------------------------------------------------------------------ freezing and adapting


def adapt(encoder: Encoder, freeze: bool | int = False, lora: Mapping[str, Any] | None = None) -> None:
    """Freeze an encoder's trunk and add adapters, after its weights have been loaded.

    A frozen module has no gradient and stays in eval mode. With adapters the rest of the trunk is frozen.

    Args:
        encoder: an encoder with a module `trunk`; its `frozen` is set.
        freeze: the whole trunk, or the number of first blocks of a vision transformer, with its embeddings.
        lora: see `LoRASettings`; None: no adapters.

    Raises:
        UserError: adapters or frozen blocks in a network without blocks, or more of them than it has.
    """
    trunk: nn.Module = encoder.trunk  # type: ignore[assignment]
    vit, first = vit_of(encoder), 0 if isinstance(freeze, bool) else freeze
    if vit is not None and first > depth_of(vit):
        raise UserError(f"{FREEZE}={first}: the transformer has {depth_of(vit)} blocks; true freezes all of it")
    if vit is None and (first or lora is not None):
        key = LORA if lora is not None else f"{FREEZE}={first}"
        raise UserError(f"{key} is of plain vision transformers (model=vit): this network has no blocks")
    if lora is not None and vit is not None:
        settings = lora_settings(lora)
        blocks: Any = vit.blocks
        add_adapters(blocks, adapted_blocks(settings, first, depth_of(vit)), settings)
    if lora is not None or freeze is True:
        names = _whole(trunk)
    else:
        names = [] if vit is None or not first else _first_blocks(vit, first)
    _freeze(encoder, trunk, names)


def adapted_blocks(settings: LoRASettings, first: int, depth: int) -> list[int]:
    """Return the indices of the blocks with adapters, of which the `first` ones are frozen.

    Raises:
        UserError: blocks that the transformer does not have, or that are frozen.
    """
    blocks = list(range(first, depth)) if settings.blocks is None else settings.blocks
    if not blocks or len(set(blocks)) < len(blocks) or max(blocks) >= depth:
        raise UserError(f"{LORA}.blocks={settings.blocks}: give different ones of 0 to {depth - 1}")
    if min(blocks) < first:
        raise UserError(f"{LORA}.blocks has {min(blocks)}, which {FREEZE}={first} freezes: leave it out of one of them")
    return blocks


def _whole(trunk: nn.Module) -> list[str]:
    adapters = tuple(name for name, module in trunk.named_modules() if isinstance(module, Adapter))
    freeze_module(trunk)  # type: ignore[no-untyped-call]  # also replaces batch norm by layers that have no statistics to estimate
    for name in adapters:
        trunk.get_submodule(name).requires_grad_(True)
    return [name for name, _ in trunk.named_modules() if name not in adapters]


def _first_blocks(vit: nn.Module, first: int) -> list[str]:
    layers = layer_ids(vit)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_(layers[name] > first)
    later = {name for name, layer in layers.items() if layer > first}

    def early(name: str) -> bool:
        block = re.match(r"blocks\.(\d+)", name)  # also those of its modules that have no parameters, as dropout
        return int(block[1]) < first if block else not any(n.startswith(f"{name}.") for n in later)

    return [name for name, _ in vit.named_modules() if early(name) or not name]


def _freeze(encoder: Encoder, trunk: nn.Module, names: list[str]) -> None:
    prefix = prefix_of(encoder, trunk)
    encoder.frozen = tuple(f"{prefix}{name}".rstrip(".") for name in names)
    encoder.train(encoder.training)


# ------------------------------------------------------------------ what is frozen, and sharing it


def frozen_tensors(encoder: Encoder, persistent: bool = True) -> dict[str, Tensor]:
    """Return the frozen parameters and buffers by their names in the encoder.

    Args:
        encoder: any encoder.
        persistent: leave out buffers that are not in its state dict.
    """
    found: dict[str, Tensor] = {}
    for place in encoder.frozen:
        module = encoder.get_submodule(place)
        hidden = module._non_persistent_buffers_set if persistent else set()
        own = {**module._parameters, **{n: b for n, b in module._buffers.items() if n not in hidden}}
        found |= {f"{place}.{name}".lstrip("."): tensor for name, tensor in own.items() if tensor is not None}
    return found


def shared_copy(network: Network) -> Network:
    """Copy a segmentor or an encoder, whose frozen tensors the copy shares; it needs no gradient."""
    encoder: Any = network.encoder if isinstance(network, Segmentor) else network
    shared = frozen_tensors(encoder, persistent=False) if isinstance(encoder, Encoder) else {}
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared.values()}
    return copy.deepcopy(network, memo).requires_grad_(False)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of tensors with their names, types and shapes, in hexadecimal."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        found.update(plain.numpy().data)
    return found.hexdigest()
