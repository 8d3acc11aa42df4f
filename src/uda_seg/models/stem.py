"""Domain-specific first stage of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from uda_seg.errors import UserError
from uda_seg.models.segmentor import Encoder


class DomainStem(nn.Module):
    """A copy of an encoder's first stage that can temporarily replace it; all other stages are shared.

    Args:
        encoder: an encoder that defines `first_stage`.

    Raises:
        UserError: the encoder does not define it, or it is frozen.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if not encoder.first_stage:
            raise UserError(f"{type(encoder).__name__} has no first stage of its own: set method.stem=shared")
        self.names = encoder.first_stage
        self.stage = nn.ModuleList(copy.deepcopy(encoder.get_submodule(name)) for name in self.names)
        if not any(parameter.requires_grad for parameter in self.stage.parameters()):
            raise UserError("the encoder's first stage is frozen, and domains would not differ: set method.stem=shared")

    @contextmanager
    def inside(self, encoder: Encoder) -> Iterator[None]:
        """Route the encoder's forward through this stage within the block."""
        own = [encoder.get_submodule(name) for name in self.names]
        try:
            self._put(encoder, list(self.stage))
            yield
        finally:
            self._put(encoder, own)

    def _put(self, encoder: Encoder, modules: list[nn.Module]) -> None:
        for name, module in zip(self.names, modules, strict=True):
            encoder.set_submodule(name, module)

    @torch.no_grad()
    def copy_from(self, encoder: Encoder) -> None:
        """Copy the encoder's weights and statistics."""
        for name, module in zip(self.names, self.stage, strict=True):
            module.load_state_dict(encoder.get_submodule(name).state_dict())
