"""Base of all methods' options."""

from __future__ import annotations

from dataclasses import dataclass

from uda_seg.errors import UserError
from uda_seg.options.validate import options_dataclass


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Base class of options; used as it is by a method without any."""


def options_of(method: type) -> type[MethodOptions]:
    """Return the dataclass of a method's options, the annotation of its constructor's parameter `options`.

    Raises:
        UserError: the constructor has another form.
    """
    found = options_dataclass(method)
    if found is None or not issubclass(found, MethodOptions):
        raise UserError(
            f"method._target_={method.__module__}.{method.__qualname__}: its constructor must take (segmentor, plan, "
            "options), with options annotated by a dataclass derived from uda_seg.MethodOptions"
        )
    return found
