"""Composition of a configuration from `conf/` and overrides, and its departures from the method's defaults."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uda_seg.config.installed import substitutes
from uda_seg.config.keys import primary
from uda_seg.config.schema import CONF, Config, Origin, Parsed, has_target, parse
from uda_seg.config.sources import make_importable, searched, searchpath_in
from uda_seg.errors import UserError
from uda_seg.options.validate import defaults, leaves, shown

OmegaConf.register_new_resolver("half", lambda size: [max(1, side // 2) for side in size], replace=True)
OmegaConf.register_new_resolver("given", lambda value, then, other: other if value is None else then, replace=True)
# Here and not with the command line's, as BiCL's file needs it wherever that is composed: uda_seg.load.
OmegaConf.register_new_resolver("without", lambda file, value: value if file is None else 0.0, replace=True)


def as_user_error(error: Exception) -> UserError:
    """Convert an error of Hydra or OmegaConf to a UserError of one line."""
    if "hydra/launcher/submitit" in str(error):
        return UserError("sweep=slurm needs submitit: pip install '.[sweep]' in the checkout")
    said = [" ".join(str(e).split()) for e in (error, error.__cause__) if e is not None and str(e).strip()]
    words = said or [type(error).__name__]
    return UserError(f"configuration: {shown('; '.join(dict.fromkeys(words)), 400)}")


def is_multirun() -> bool:
    """Return whether this process runs a job of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def composed_tree(name: str, overrides: Sequence[str], **options: Any) -> DictConfig:
    """Compose a primary configuration without checking it; raises UserError instead of Hydra's errors."""
    try:
        return compose(name, list(overrides), **options)
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise as_user_error(error) from error


def composed(
    overrides: Sequence[str],
    kind: type[Parsed] = Config,  # type: ignore[assignment]
    name: str | None = None,
) -> Parsed:
    """Compose and check a command's configuration without a command line (for tests, notebooks and the bench)."""
    make_importable(searched(searchpath_in(overrides)))
    with hydra_initialized():
        raw = composed_tree(name or primary(kind), overrides, return_hydra_config=True)
        config = parse(OmegaConf.masked_copy(raw, [str(key) for key in raw if key != "hydra"]), kind)
    config.origin = Origin.of(raw.hydra)
    return config


def hydra_initialized() -> AbstractContextManager[Any]:
    """Initialise Hydra, unless a running job has already."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    started: AbstractContextManager[Any] = initialize_config_dir(str(CONF), version_base="1.3")
    return started


# Keys set by a method's file that a data set or the command line may override.
RECIPE = ("steps", "pretrained", "running_statistics", "optimizer", "schedule", "teacher", "method")
INITIAL_WEIGHTS = (".weights", ".allow_missing")  # of an encoder, which follow from `pretrained`


def departures(config: Config) -> list[str]:
    """List settings that differ from the method's file: `key value (the method's value)`, sorted.

    They mainly come from `data=streets`: a small network with other initial weights, trained for minutes.
    """
    if not HydraConfig.initialized():
        return []
    chosen = HydraConfig.get().runtime.choices
    tree = _recipe(chosen["method"], tuple(HydraConfig.get().searchpath))
    own_model = tree.hydra.runtime.choices["model"]
    said = asdict(config)
    values = dict(leaves({key: said[key] for key in RECIPE}))
    values["evaluator.inference"] = config.evaluator.inference
    values["data.rare_class.enabled"] = config.data.rare_class.enabled
    found = [] if own_model == chosen["model"] else [f"model {chosen['model']} ({own_model})"]
    if not found:  # another network differs in every number, and `pretrained` tells its initial weights
        values |= {key: value for key, value in leaves({"model": said["model"]}) if not key.endswith(INITIAL_WEIGHTS)}
    unset = dict(_defaults_of_classes(OmegaConf.masked_copy(tree, ["method", "model"])))
    for key, value in values.items():
        own = OmegaConf.select(tree, key, default=unset.get(key, "not set"))
        if not isinstance(value, Mapping) and own != value:
            found.append(f"{key} {value} ({own})")
    return sorted(found)


def _defaults_of_classes(tree: DictConfig) -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the default of every option of the classes that a tree names."""
    for key, node in leaves(OmegaConf.to_container(tree)):
        if has_target(node):
            yield from ((f"{key}.{name}", value) for name, value in defaults(get_class(node["_target_"])).items())


def stand_ins() -> list[str]:
    """List choices of this configuration that stand for others whose package is not installed, one line each."""
    return substitutes(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else []


@functools.cache
def _recipe(method: str, paths: Sequence[str] = ()) -> DictConfig:
    """Compose a method's file alone; cached, because it is the same for all jobs of a sweep."""
    where = [f"hydra.searchpath={json.dumps(paths)}"] if paths else []
    with hydra_initialized():
        tree = compose("config", [*where, f"method={method}", "~data"], return_hydra_config=True)
    return tree
