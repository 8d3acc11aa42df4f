"""Schema of the configuration, and its validation with errors of one line."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from uda_seg.config.commands import DepthConfig, EvaluateConfig
from uda_seg.config.keys import RENAMED, belongs_to, renamed
from uda_seg.config.settings import CONF as CONF
from uda_seg.config.settings import CallbackSettings
from uda_seg.config.settings import Config as Config
from uda_seg.config.settings import Origin as Origin
from uda_seg.config.settings import groups as groups
from uda_seg.data.custom import CustomClasses, CustomData, classes_of
from uda_seg.data.settings import NAMED, DataSettings, DomainSettings
from uda_seg.data.specs import DatasetSpec
from uda_seg.errors import UserError
from uda_seg.methods.base import UDAModule
from uda_seg.methods.options.base import options_of
from uda_seg.models.segmentor import Segmentor
from uda_seg.options.validate import (
    check_target,
    class_of,
    defaults,
    expand_home,
    leaves,
    nearest,
    options,
    plain_hints,
    read,
    shown,
)

Parsed = typing.TypeVar("Parsed", bound=Config)


def parse(raw: DictConfig, kind: type[Parsed] = Config) -> Parsed:  # type: ignore[assignment]
    """Validate a composed configuration, convert it to dataclasses, and expand `~` in paths.

    Args:
        raw: the composed configuration.
        kind: schema of the command.

    Raises:
        UserError: an unknown key (with the nearest known one), a value of the wrong type or out of range, or impossible
            sizes.
    """
    try:
        plain = OmegaConf.to_container(raw, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} is missing: give it, or choose files that say it") from error
    except OmegaConfBaseException as error:
        key = str(error.full_key or error.key or "?")
        if (found := re.search(r"access ([\w.]+): node `([\w.]+)` is not a container", str(error))) is not None:
            raise UserError(
                f"{key} is taken from {found[1]}, but {found[2]} is null: give {key}=..., or leave out what it is for "
                f"(~{key.rpartition('.')[0]})"
            ) from error
        raise UserError(f"configuration: {key}: {shown(str(error).splitlines()[0])}") from error
    except RecursionError as error:
        raise UserError("configuration: values are nested too deeply, or refer to each other in a circle") from error
    tree = _callbacks_apart(_without_null_domains(plain))
    _refuse_others(tree, kind)
    config = read(tree, kind)
    config.method = _checked_method(config.method)
    check_target(config.model, "model", Segmentor)
    for name, node in config.callbacks.others.items():
        check_target(node, f"callbacks.{name}", pl.Callback)
    for key, domain in config.data.domains.items():
        if has_target(domain.custom):
            check_target(domain.custom, f"{key}.custom", DatasetSpec)
    _check_data(config)
    _check_sizes(config)
    expand_home(config)
    return config


def _checked_method(node: Mapping[str, Any]) -> dict[str, Any]:
    """Check a method's node, and add the defaults of its options.

    Raises:
        UserError: a class that is no method, or an unknown, missing or invalid option.
    """
    method = class_of(node.get("_target_"), "method")
    if issubclass(method, UDAModule):
        options_of(method)
    check_target(node, "method", UDAModule)
    return {"_target_": node["_target_"], **defaults(method), **node}


def resolved(config: Config) -> dict[str, Any]:
    """Return all settings as plain values, including those of the network that no file states."""
    tree = asdict(config)
    return tree | {"model": completed(tree["model"])}


def completed(node: Any) -> Any:
    """Add the plain defaults of its classes to a node and to those inside of it, with lists for tuples."""
    if isinstance(node, list | tuple):
        return [completed(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    known = defaults(class_of(node["_target_"], "model")) if has_target(node) else {}
    plain = {name: value for name, value in known.items() if _is_plain(value)}
    return {name: completed(value) for name, value in {**plain, **node}.items()}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _refuse_others(tree: Mapping[str, Any], kind: type[Config]) -> None:
    """Raise UserError if a file has settings of another command, or by the name of an older version."""
    for key in tree:
        if said := belongs_to(str(key), kind):
            raise UserError(f"{key} {said}")
    for key, _ in leaves(tree):
        if key in RENAMED:
            raise UserError(f"{key} {renamed(key)}")


def _without_null_domains(tree: Any) -> Any:
    """Remove named domains that are null, with which a data set drops inherited ones."""
    data = tree.get("data")
    if not isinstance(data, Mapping):
        return tree
    named = {key: data.get(key, {}) or {} for key in NAMED}
    kept = {
        key: {name: domain for name, domain in sets.items() if domain is not None}
        for key, sets in named.items()
        if isinstance(sets, Mapping)
    }
    return {**tree, "data": {**data, **kept}}


def _callbacks_apart(tree: Any) -> Any:
    """Move callbacks that stand beside our settings to `others`, without those that are null."""
    callbacks = tree.get("callbacks")
    if not isinstance(callbacks, Mapping) or not isinstance(callbacks.get("others", {}), Mapping | None):
        return tree
    known = {f.name for f in fields(CallbackSettings)}
    kept = {name: value for name, value in callbacks.items() if name in known}
    others = {**(kept.get("others") or {}), **{n: node for n, node in callbacks.items() if n not in known}}
    for name, node in others.items():
        if node is not None and not has_target(node):
            hint = nearest(f"callbacks.{name}", [f"callbacks.{other}" for other in callbacks if other != name])
            raise UserError(f"callbacks.{name}={shown(node)} has no _target_, the class of the callback; {hint}")
    return {**tree, "callbacks": {**kept, "others": {n: node for n, node in others.items() if node is not None}}}


def has_target(node: object) -> bool:
    """Check whether a value is a node that builds a class."""
    return isinstance(node, Mapping) and "_target_" in node


def can_name_a_class(key: str) -> bool:
    """Check whether a class may be added at this key: a callback, or a custom data set."""
    domain = r"data\.(source|target|(more_sources|more_targets|validation)\.[\w-]+)"
    return re.fullmatch(rf"callbacks\.[\w-]+|{domain}\.custom", key) is not None


def key_of(override: str) -> str:
    """Return the key of an override `key=value`, `+key=value`, `++key=value` or `~key`."""
    return override.lstrip("+~").partition("=")[0]


# Untyped nodes, and the type of their values.
_DESCRIBED: dict[tuple[type, str], Any] = {
    (DomainSettings, "custom"): CustomData,
    (DataSettings, "class_set"): CustomClasses,
    (DataSettings, "merge"): dict[str, Any],
    (CustomData, "label_map"): dict[int, Any],
}


def accepted(tree: Mapping[str, Any], asked: str = "", kind: type[Config] = Config) -> Iterator[str]:
    """Yield every dotted key that a composed tree could contain: the schema's, and options of its classes.

    Args:
        tree: plain values, including freely named nodes (validation sets).
        asked: a key whose parts substitute freely chosen names.
        kind: schema of the command.
    """
    yield from _keys(kind, "", asked.split("."), tree)
    for key, node in leaves(tree):
        if isinstance(node, Mapping) and "_target_" in node:
            yield from (f"{key}.{option}" for option in options(node["_target_"], key))
            if can_name_a_class(key):
                yield from (key, f"{key}._target_")


def _keys(kind: type, where: str, asked: Sequence[str], tree: Any) -> Iterator[str]:
    for name, hint in plain_hints(kind).items():
        node = tree.get(name) if isinstance(tree, Mapping) else None
        rest = asked[1:] if asked[:1] == [name] else []
        yield f"{where}{name}"
        described = _DESCRIBED.get((kind, name), hint)
        for option in typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (described,):
            if is_dataclass(option):
                yield from _keys(typing.cast(type, option), f"{where}{name}.", rest, node)
            elif typing.get_origin(option) is dict:
                inner = typing.get_args(option)[1]
                # A validation set has to exist or be added, and classes to build define their own options.
                free = not issubclass(kind, Config) and not is_dataclass(inner)
                named = [*(node if isinstance(node, Mapping) else ()), *(rest[:1] if free else ())]
                yield from _named(inner, f"{where}{name}.", named, rest[1:], node)


def _named(kind: Any, where: str, names: Sequence[Any], asked: Sequence[str], tree: Any) -> Iterator[str]:
    for name in names:
        yield f"{where}{name}"
        if is_dataclass(kind):
            node = tree.get(name) if isinstance(tree, Mapping) else None
            yield from _keys(typing.cast(type, kind), f"{where}{name}.", asked, node)


def _check_data(config: Config) -> None:
    data, parts = config.data, config.optimizer.accumulate
    if data.class_set is not None and data.classes != "custom":
        raise UserError(f"data.class_set is given, but data.classes={data.classes}: add data.classes=custom")
    classes_of(data).subset(data.eval_classes)
    depth = config.depth if isinstance(config, DepthConfig) else None
    if depth is not None and depth.nearest >= depth.farthest:
        raise UserError(f"depth.nearest={depth.nearest} must be below depth.farthest={depth.farthest}")
    batches = {"data.source_batch": data.source_batch, "data.target_batch": data.target_batch or data.source_batch}
    for key, batch in batches.items():
        if batch % parts:
            raise UserError(f"optimizer.accumulate={parts} must divide {key}={batch}")


def _check_sizes(config: Config) -> None:
    data, evaluator = config.data, config.evaluator
    domains = data.sources | data.targets
    sizes = {f"{name}.size": domain.size for name, domain in domains.items()}
    sizes["data.crop"] = data.crop
    # Evaluation does not crop, so a crop cannot be too large for other data.
    read: dict[str, Sequence[str]] = {} if type(config) is EvaluateConfig else {"data.crop": list(domains)}
    if isinstance(config, DepthConfig):
        sizes["depth.crop"] = config.depth.crop
        read["depth.crop"] = [f"data.{name}" for name in config.depth.domains]
    for key, names in read.items():
        for domain in (f"{name}.size" for name in names):
            crop, size = sizes[key], sizes.get(domain)
            if crop is not None and size is not None and (crop[0] > size[0] or crop[1] > size[1]):
                raise UserError(f"{key}={crop} is larger than {domain}={size} (height, width): make the crop smaller")
    chooser = evaluator.choose_by
    if chooser is not None and chooser not in evaluator.label_free:
        raise UserError(
            f"evaluator.choose_by={chooser} is not computed: add it, "
            f"evaluator.label_free=[{','.join([*evaluator.label_free, chooser])}]"
        )
    if evaluator.inference == "slide":
        for window, stride in zip(evaluator.window, evaluator.stride, strict=True):
            if stride > window:
                raise UserError(
                    f"evaluator.stride={evaluator.stride} is larger than evaluator.window={evaluator.window}: "
                    "pixels between two windows would have no prediction"
                )
