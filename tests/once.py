"""Do once what hundreds of tests have in common, and give each of them a copy of its own.

Most of the time of a small run goes into composing its configuration, and most of that into files and choices that all
runs share. `tests/config/test_once.py` compares what is kept with what is made anew.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import os
import pickle
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import omegaconf._utils
import omegaconf.base
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.trainer.connectors import callback_connector

from uda_seg.config import installed
from uda_seg.config.schema import CONF
from uda_seg.runs import build


class Copies:
    """Keep results by key and give each caller a copy: an unpickled one, in a quarter of the time of `deepcopy`."""

    def __init__(self) -> None:
        self.kept: dict[Hashable, bytes] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = pickle.dumps(make(), pickle.HIGHEST_PROTOCOL)
        return pickle.loads(self.kept[key])


def reading(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Read a file of YAML once as long as it does not change."""
    read = Copies()

    @functools.wraps(load)
    def load_once(file: Any) -> Any:
        name = file if isinstance(file, str | os.PathLike) else file.name
        return read.get((str(name), os.stat(name).st_mtime_ns), lambda: load(file))

    return load_once


def of_the_package(repo: Any) -> bool:
    """Tell whether a configuration has only the package's own files, which no test changes."""
    own = {"pkg://hydra.conf", f"file://{CONF}", "structured://"}
    return {source.full_path() for source in repo.get_sources()} == own


def choosing(choose: Callable[..., Any]) -> Callable[..., Any]:
    """List the files of a configuration once for the same choices."""
    chosen: dict[Hashable, Any] = {}

    @functools.wraps(choose)
    def choose_once(repo: Any, config_name: str, overrides_list: list[Override], **how: bool) -> Any:
        if not of_the_package(repo):
            return choose(repo, config_name, overrides_list, **how)
        values = Overrides(repo, overrides_list).config_overrides
        asked = [o.input_line for o in overrides_list if o not in values]
        # The package's files ask what is installed, and tests pretend that something is not.
        there = (installed.find_spec, *ConfigStore.instance().repo["hydra"]["launcher"])
        key = (config_name, *asked, *how.items(), *there)
        if key not in chosen:
            chosen[key] = choose(repo, config_name, overrides_list, **how)
        return replace(chosen[key], config_overrides=values)

    return choose_once


def merging(merge: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Merge the files of a list once, before values are overridden."""
    merged = Copies()

    @functools.wraps(merge)
    def merge_once(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> DictConfig:
        def make() -> DictConfig:
            return merge(self, defaults=defaults, repo=repo)

        return merged.get(tuple(map(repr, defaults)), make) if of_the_package(repo) else make()

    return merge_once


def repository(begin: Callable[..., None]) -> Callable[..., None]:
    """Copy the places of files shallowly, as Hydra replaces them as a whole; it copies all that they hold each time."""

    @functools.wraps(begin)
    def once(self: CachingConfigRepository, delegate: Any) -> None:
        self.delegate, self.cache = copy.copy(delegate), {}

    return once


def parsing(parse: Callable[..., Any]) -> Callable[..., Any]:
    """Parse an override once for the same text."""
    parsed = Copies()

    @functools.wraps(parse)
    def parse_once(self: OverridesParser, s: str, rule_name: str) -> Any:
        return parsed.get((s, rule_name), lambda: parse(self, s, rule_name))

    return parse_once


def trying(try_out: Callable[..., None]) -> Callable[..., None]:
    """Try a network out before training once for the same sizes."""
    passed: set[Hashable] = set()

    @functools.wraps(try_out)
    def try_out_once(network: Any, work: Any, images: int, size: tuple[int, int]) -> None:
        key = (repr(network), network.training, work.__name__, images, *size)
        if key not in passed:
            try_out(network, work, images, size)
            passed.add(key)

    return try_out_once


# What is done once, and in whose place.
ONCE: dict[tuple[Any, str], Callable[[Any], Any]] = {
    (OmegaConf, "load"): reading,
    (config_loader_impl, "create_defaults_list"): choosing,
    (ConfigLoaderImpl, "_compose_config_from_defaults_list"): merging,
    (CachingConfigRepository, "__init__"): repository,
    (OverridesParser, "parse_rule"): parsing,
    (omegaconf._utils, "parse"): functools.lru_cache(maxsize=4096),  # of interpolations, into trees that are only read
    (omegaconf.base, "parse"): functools.lru_cache(maxsize=4096),
    (callback_connector, "_load_external_callbacks"): functools.cache,  # of other packages; none has any
    (importlib.metadata, "version"): functools.cache,
    (build, "try_out"): trying,
}
