"""Choices that depend on installed packages: `${installed:package,choice,substitute}` in a defaults list."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from omegaconf import OmegaConf

_SUBSTITUTES: dict[str, tuple[str, str]] = {}


def installed(package: str, choice: str, substitute: str) -> str:
    """Return `choice` if a package is installed, else `substitute`.

    Hydra replaces it by the name while it composes, so runs and checkpoints state which one they have.
    """
    if find_spec(package) is not None:
        _SUBSTITUTES.pop(substitute, None)
        return choice
    _SUBSTITUTES[substitute] = (choice, package)
    return substitute


def substitutes(choices: Mapping[str, str | None]) -> list[str]:
    """Say which of the choices, by group, only stand for others whose package is not installed."""
    return [
        f"{group}={name} in place of {group}={_SUBSTITUTES[name][0]}: {_SUBSTITUTES[name][1]} is not installed"
        for group, name in choices.items()
        if name in _SUBSTITUTES
    ]


OmegaConf.register_new_resolver("installed", installed, replace=True)
