"""Compare what tests share, as `once` keeps it, with what each of them would compose anew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from omegaconf import Container, DictConfig, OmegaConf

from once import ONCE
from uda_seg.config.compose import composed_tree, hydra_initialized

CHOICES = (
    ("method=lcmsm", "data=streets"),
    ("method=dacs", "data=streets2dg", "trainer=cpu", "preset=paper"),
    ("experiment=bicl_gta2cs",),
)
VALUES = ("steps=3", "++data.target.root='a, b/${seed}'", "optimizer.lr=1e-3", "hydra.run.dir=x", "~data.validation")


def nodes(tree: Container) -> Iterator[tuple[object, ...]]:
    """All that OmegaConf knows of a tree: keys, types, values without resolving them, and flags."""
    keys = list(tree) if isinstance(tree, DictConfig) else range(len(tree))
    for key in keys:
        node = tree._get_node(key)
        flags = {name: node._get_flag(name) for name in ("struct", "readonly", "allow_objects")}
        yield (node._get_full_key(""), type(node), node._metadata.ref_type, node._metadata.object_type, flags)
        if isinstance(node, Container) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
            yield from nodes(node)
        else:
            yield node._value()


@pytest.mark.parametrize("values", [(), VALUES], ids=["files", "values"])
def test_what_is_kept_is_what_is_made_anew(values, monkeypatch):
    def trees():
        with hydra_initialized():
            return [composed_tree("config", (*choice, *values), return_hydra_config=True) for choice in CHOICES]

    kept = [trees(), trees()]  # the first may be the one that is kept
    for tree in kept[0]:
        OmegaConf.set_struct(tree, False)
        tree.clear()  # the others' copies do not mind
    again = trees()
    for owner, name in ONCE:
        monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
    anew = trees()
    for found in (kept[1], again):
        assert [list(nodes(tree)) for tree in found] == [list(nodes(tree)) for tree in anew]
    assert all(len(list(nodes(tree))) > 300 for tree in anew)
