"""Conversion of other libraries' parameter names for the Mix Transformer."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Prefixes of the parts of stage i in transformers: up to version 4 (the files on the hub) one list per kind of part,
# from version 5 on (newly saved files) one list of stages.
_PARTS = (
    (re.compile(r"patch_embeddings\.(\d)\.(.+)"), "patch_embed{stage}.{rest}"),
    (re.compile(r"block\.(\d)\.(\d+\..+)"), "block{stage}.{rest}"),
    (re.compile(r"layer_norm\.(\d)\.(.+)"), "norm{stage}.{rest}"),
    (re.compile(r"stages\.(\d)\.patch_embeddings\.(.+)"), "patch_embed{stage}.{rest}"),
    (re.compile(r"stages\.(\d)\.blocks\.(\d+\..+)"), "block{stage}.{rest}"),
    (re.compile(r"stages\.(\d)\.layer_norm\.(.+)"), "norm{stage}.{rest}"),
)
# Names inside a part; a longer name precedes one that is its prefix.
_INSIDE = (
    ("attention.self.query.", "attn.q."),
    ("attention.self.key.", "attn.k."),
    ("attention.self.value.", "attn.v."),
    ("attention.self.sr.", "attn.sr."),
    ("attention.self.layer_norm.", "attn.norm."),
    ("attention.output.dense.", "attn.proj."),
    ("attention.q_proj.", "attn.q."),
    ("attention.k_proj.", "attn.k."),
    ("attention.v_proj.", "attn.v."),
    ("attention.o_proj.", "attn.proj."),
    ("attention.sequence_reduction.sequence_reduction.", "attn.sr."),
    ("attention.sequence_reduction.layer_norm.", "attn.norm."),
    ("layer_norm_1.", "norm1."),
    ("layer_norm_2.", "norm2."),
    ("layernorm_before.", "norm1."),
    ("layernorm_after.", "norm2."),
    ("mlp.dense1.", "mlp.fc1."),
    ("mlp.dense2.", "mlp.fc2."),
)


def from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a SegFormer encoder of Hugging Face transformers to the published names, joining K and V into one layer.

    Other names are left unchanged, and all names if none is from transformers.
    """
    if not any("patch_embeddings." in name for name in tensors):
        return dict(tensors)
    renamed = {_published(name): tensor for name, tensor in tensors.items()}
    joined: dict[str, Tensor] = {}
    for name, tensor in renamed.items():
        value = renamed.get(name.replace(".attn.k.", ".attn.v."))
        if ".attn.k." in name and value is not None and value.shape == tensor.shape:
            joined[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([tensor, value])  # rows: all of K, then all of V
        elif ".attn.v." not in name:
            joined[name] = tensor
    return joined


def _published(name: str) -> str:
    for pattern, template in _PARTS:
        if found := pattern.fullmatch(name):
            rest = found[2]
            if template.startswith("patch_embed"):
                rest = rest.replace("layer_norm.", "norm.")
            for theirs, ours in _INSIDE:
                rest = rest.replace(theirs, ours)
            return template.format(stage=int(found[1]) + 1, rest=rest)
    return name
