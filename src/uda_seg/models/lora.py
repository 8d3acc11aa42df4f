"""Low-rank adaptation of a vision transformer's linear layers (LoRA, Hu et al. 2022).

A layer computes W x + b + (alpha / rank) B A x with W and b frozen. Names in the state dict stay those of the plain
layer (`blocks.0.attn.qkv.weight`), the adapter's are beside them (`blocks.0.attn.qkv.lora.a`, `.lora.b`).

`init="minor"` starts A and B from the components of W with the smallest singular values, A0 and B0 (SoMA, Yun et al.
2025), and trains W - B0 A0 + B A. Here W stays untouched and B A - B0 A0 is added, which is the same function: its
start is W bit for bit, W can be shared and has the digest of its file, and loading needs no decomposition.

SoMA's release has a layer each for q, k and v, and so for each of them an adapter and components of its own
(`separate`), and it trains the biases of the adapted layers (`bias`). Both are off by default, as in peft.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.options.constraints import Count, CountOrZero, Length, OneOf, Ratio
from uda_seg.options.validate import read

KEY = "model.encoder.lora"

# Linear layers of a block that a target stands for: some families split `qkv`, and gate the first layer of the MLP.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "proj": ("attn.proj",),
    "fc1": ("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.w12"),
    "fc2": ("mlp.fc2", "mlp.w3"),
}


@dataclass(frozen=True)
class LoRASettings:
    """Settings of `model.encoder.lora`."""

    rank: Count = 16
    """Rank of the update (16: SoMA)."""

    alpha: Ratio = 16.0
    """Scale of the update, relative to `rank`."""

    blocks: list[CountOrZero] | None = None
    """Indices of the adapted blocks, from 0; null: all that `model.encoder.freeze` leaves."""

    targets: Annotated[list[Annotated[str, OneOf(tuple(TARGETS))]], Length(1, len(TARGETS))] = field(
        default_factory=lambda: list(TARGETS)
    )
    """Adapted layers: `qkv` and `proj` of the attention, `fc1` and `fc2` of the MLP."""

    init: Annotated[str, OneOf(("gaussian", "minor"))] = "gaussian"
    """`gaussian`: A is drawn, B is zero; `minor`: the components of W with the smallest singular values (SoMA)."""

    separate: bool = False
    """Give q, k and v an adapter of this rank each where they are one layer (SoMA)."""

    bias: bool = False
    """Also train the biases of the adapted layers (SoMA's release); the change is kept beside the adapter."""


def lora_settings(given: Mapping[str, Any]) -> LoRASettings:
    """Convert plain values to settings.

    Raises:
        UserError: an unknown key, or a value of the wrong type or out of range.
    """
    # Hydra hands over lists of its own kind.
    plain = {n: v if isinstance(v, str) or not isinstance(v, Sequence) else list(v) for n, v in given.items()}
    return read(plain, LoRASettings, f"{KEY}.")


class Adapter(nn.Module):
    """The low-rank update of a linear layer.

    Args:
        weight: [out, in], the frozen weight.
        rank: rank r, at most min(out, in).
        alpha: the update is scaled by alpha / r.
        init: see `LoRASettings`.
        parts: number p of layers that the weight holds one below the other (q, k and v), each with a rank of its own.
        bias: also learn a change of the bias, without `scale`.

    Attributes:
        a: [p * r, in].
        b: [out, r].
        bias: [out], or None.
    """

    a: nn.Parameter
    b: nn.Parameter
    bias: nn.Parameter | None
    a0: Tensor | None
    b0: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        alpha: float,
        init: str = "gaussian",
        parts: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.parts = alpha / rank, parts
        if init == "minor":
            found = zip(*(minor_components(part, rank) for part in weight.chunk(parts)), strict=True)
            a, b = (torch.cat(each) / math.sqrt(self.scale) for each in found)
            self.register_buffer("a0", a.clone())
            self.register_buffer("b0", b.clone())
        else:
            # Hu et al. draw A from a Gaussian; its deviation is peft's.
            a = torch.randn(parts * rank, weight.shape[1], dtype=weight.dtype, device=weight.device) / rank
            b = torch.zeros(weight.shape[0], rank, dtype=weight.dtype, device=weight.device)
            self.a0 = self.b0 = None
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.bias = nn.Parameter(torch.zeros_like(b[:, 0])) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the update's share of the output, [..., in] -> [..., out]."""
        update = self._through(x, self.a, self.b)
        if self.a0 is not None and self.b0 is not None:
            update = update - self._through(x, self.a0, self.b0)
        update = self.scale * update
        return update if self.bias is None else update + self.bias

    def delta(self) -> Tensor:
        """Compute the update of the weight, [out, in]."""
        delta = self._product(self.a, self.b)
        if self.a0 is not None and self.b0 is not None:
            delta = delta - self._product(self.a0, self.b0)
        return self.scale * delta

    def _through(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        inner = F.linear(x, a)
        if self.parts == 1:
            return F.linear(inner, b)
        pairs = zip(inner.chunk(self.parts, -1), b.chunk(self.parts), strict=True)
        return torch.cat([F.linear(part, own) for part, own in pairs], -1)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        if self.parts == 1:
            return b @ a
        return torch.cat([own @ part for own, part in zip(b.chunk(self.parts), a.chunk(self.parts), strict=True)])


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; it has the tensors of `base` itself, which need no gradient any more."""

    def __init__(self, base: nn.Linear, settings: LoRASettings, parts: int = 1) -> None:
        # Without values: the next lines replace both tensors.
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        base.requires_grad_(False)
        self.weight, self.bias = base.weight, base.bias
        bias = settings.bias and self.bias is not None
        self.lora = Adapter(self.weight.detach(), settings.rank, settings.alpha, settings.init, parts, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its adapter, [..., in] -> [..., out]."""
        adapted: Tensor = super().forward(x) + self.lora(x)
        return adapted

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer with the update in its weight and bias; the shared ones are left as they are."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight = nn.Parameter(self.weight + self.lora.delta())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.clone() if self.lora.bias is None else self.bias + self.lora.bias)
        return plain.train(self.training)


@torch.no_grad()
def minor_components(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A [r, in] and B [out, r], so that B A is the part of `weight` with the r smallest singular values."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    root = s[-rank:].sqrt()
    parts = root[:, None] * v[-rank:], u[:, -rank:] * root
    # Fused optimisers pair a parameter's memory with its gradient's, and reduced gradients are contiguous.
    a, b = (part.to(weight.dtype).contiguous() for part in parts)
    return a, b


def add_adapters(blocks: Sequence[nn.Module], chosen: Sequence[int], settings: LoRASettings) -> None:
    """Replace the targeted linear layers of the chosen blocks of a vision transformer by adapted ones.

    Raises:
        UserError: a target that these blocks do not have, or a rank above what their layers have.
    """
    for index in chosen:
        for target in settings.targets:
            names = [name for name in TARGETS[target] if _linear(blocks[index], name) is not None]
            if not names:
                has = [name for name, module in blocks[index].named_modules() if isinstance(module, nn.Linear)]
                raise UserError(f"{KEY}.targets: block {index} has no {target}; its linear layers: {', '.join(has)}")
            for name in names:
                _adapt(blocks[index], name, settings)


def _linear(block: nn.Module, name: str) -> nn.Linear | None:
    parent, _, child = name.rpartition(".")
    found = getattr(getattr(block, parent, None), child, None)
    return found if isinstance(found, nn.Linear) else None


def _adapt(block: nn.Module, name: str, settings: LoRASettings) -> None:
    layer = _linear(block, name)
    assert layer is not None
    parts = 3 if settings.separate and name == "attn.qkv" else 1
    most = min(layer.in_features, layer.out_features // parts)
    if settings.rank > most:
        raise UserError(f"{KEY}.rank={settings.rank} is more than the {most} of {name}: make it smaller")
    parent, _, child = name.rpartition(".")
    owner = block.get_submodule(parent)
    setattr(owner, child, LoRALinear(layer, settings, parts))
    if hasattr(owner, "qkv_bias_separate"):
        # EVA and BEiT would otherwise read the weight of `qkv` themselves, past its adapter.
        vars(owner)["qkv_bias_separate"] = True


def merge_adapters(network: nn.Module) -> int:
    """Replace all adapted layers of a network by plain ones with the update in their weights, and count them."""
    adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, LoRALinear)]
    for name, module in adapted:
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, module.merged())
    return len(adapted)
