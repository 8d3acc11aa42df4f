"""The released checkpoints as tables of names and shapes, written down from what is known of them.

Nothing here imports the package: these are what its own names and shapes are held against.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

Shapes = dict[str, tuple[int, ...]]
B5 = ((64, 128, 320, 512), (3, 6, 40, 3))
TINY = ((4, 4, 10, 8), (1, 1, 1, 1))
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def affine(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def batch_norm(name: str, channels: int) -> Shapes:
    return affine(name, channels) | {
        f"{name}.running_mean": (channels,),
        f"{name}.running_var": (channels,),
        f"{name}.num_batches_tracked": (),
    }


def below(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def mit(dims: Sequence[int], depths: Sequence[int]) -> Shapes:
    """NVlabs' names."""
    out: Shapes = {}
    for i, (d, depth) in enumerate(zip(dims, depths, strict=True), start=1):
        kernel, inputs = (7, 3) if i == 1 else (3, dims[i - 2])
        out |= affine(f"patch_embed{i}.proj", d, inputs, kernel, kernel) | affine(f"patch_embed{i}.norm", d)
        for j in range(depth):
            b = f"block{i}.{j}"
            out |= affine(f"{b}.norm1", d) | affine(f"{b}.norm2", d)
            out |= affine(f"{b}.attn.q", d, d) | affine(f"{b}.attn.kv", 2 * d, d) | affine(f"{b}.attn.proj", d, d)
            if i < 4:
                r = {1: 8, 2: 4, 3: 2}[i]
                out |= affine(f"{b}.attn.sr", d, d, r, r) | affine(f"{b}.attn.norm", d)
            out |= affine(f"{b}.mlp.fc1", 4 * d, d) | affine(f"{b}.mlp.fc2", d, 4 * d)
            out |= affine(f"{b}.mlp.dwconv.dwconv", 4 * d, 1, 3, 3)
        out |= affine(f"norm{i}", d)
    return out


def embeddings(dims: Sequence[int], width: int) -> Shapes:
    out: Shapes = {}
    for i, d in enumerate(dims):
        out |= affine(f"embed_layers.{i}.proj", width, d)
    return out


def daformer_head(dims: Sequence[int], width: int, classes: int, seen: int | None = None) -> Shapes:
    four, aspp = 4 * width, "fuse_layer.aspp_modules"
    out = embeddings(dims, width)
    out |= {f"{aspp}.0.conv.weight": (width, four, 1, 1)} | batch_norm(f"{aspp}.0.bn", width)
    for i in (1, 2, 3):
        out |= {f"{aspp}.{i}.depthwise_conv.conv.weight": (four, 1, 3, 3)}
        out |= batch_norm(f"{aspp}.{i}.depthwise_conv.bn", four)
        out |= {f"{aspp}.{i}.pointwise_conv.conv.weight": (width, four, 1, 1)}
        out |= batch_norm(f"{aspp}.{i}.pointwise_conv.bn", width)
    out |= {"fuse_layer.bottleneck.conv.weight": (width, four, 3, 3)} | batch_norm("fuse_layer.bottleneck.bn", width)
    return out | affine("conv_seg", classes, seen or width, 1, 1)


def daformer(dims: Sequence[int], depths: Sequence[int], width: int = 256, classes: int = 19) -> Shapes:
    return below("backbone.", mit(dims, depths)) | below("decode_head.", daformer_head(dims, width, classes))


def hrda(
    dims: Sequence[int], depths: Sequence[int], width: int = 256, classes: int = 19, attention: int = 256
) -> Shapes:
    scale = embeddings(dims, attention) | {"fuse_layer.conv.weight": (attention, 4 * attention, 1, 1)}
    scale |= batch_norm("fuse_layer.bn", attention) | affine("conv_seg", classes, attention, 1, 1)
    out = below("backbone.", mit(dims, depths))
    out |= below("decode_head.head.", daformer_head(dims, width, classes))
    return out | below("decode_head.scale_attention.", scale)


def lcmsm(dims: Sequence[int], depths: Sequence[int], width: int = 512, classes: int = 19) -> Shapes:
    language = daformer_head(dims, width, classes, seen=width + classes)
    language |= affine("spatial_block.depthwise.depthwise", 1, 1, 3, 3)
    return daformer(dims, depths, width, classes) | below("vlc_head.", language)


def bottleneck(inputs: int, inner: int, projected: bool) -> Shapes:
    outputs = 4 * inner
    out: Shapes = {}
    for i, shape in enumerate(((inner, inputs, 1, 1), (inner, inner, 3, 3), (outputs, inner, 1, 1)), start=1):
        out |= {f"conv{i}.weight": shape} | batch_norm(f"bn{i}", shape[0])
    if projected:
        out |= {"downsample.0.weight": (outputs, inputs, 1, 1)} | batch_norm("downsample.1", outputs)
    return out


def resnet101(width: int = 64, blocks: Sequence[int] = (3, 4, 23, 3)) -> Shapes:
    out: Shapes = {"conv1.weight": (width, 3, 7, 7)} | batch_norm("bn1", width)
    inputs = width
    for n, count in enumerate(blocks, start=1):
        inner = width * 2 ** (n - 1)
        for i in range(count):
            out |= below(f"layer{n}.{i}.", bottleneck(inputs, inner, projected=i == 0))
            inputs = 4 * inner
    return out


def dilated(name: str, classes: int, inputs: int) -> Shapes:
    out: Shapes = {}
    for i in range(4):
        out |= affine(f"{name}.conv2d_list.{i}", classes, inputs, 3, 3)
    return out


def corda(
    gta: bool, width: int = 64, blocks: Sequence[int] = (3, 4, 23, 3), tasks: int = 256, classes: int = 19
) -> Shapes:
    out, last, first = resnet101(width, blocks), 32 * width, "initial_task_prediction_heads"
    for task in ("S", "D"):
        out |= below(f"{first}.layers.{task}.0.", bottleneck(last, tasks // 4, projected=True))
        out |= below(f"{first}.layers.{task}.1.", bottleneck(tasks, tasks // 4, projected=False))
    for task in ("D", "D_src"):
        out |= affine(f"{first}.conv_out.{task}", 1, tasks, 1, 1)
    if gta:
        out |= dilated(f"{first}.conv_out.S", classes, last)
    else:
        out |= affine(f"{first}.conv_out.S", classes, tasks, 1, 1)
    for pair in ("S.D", "D.S"):
        for part in ("attention.0", "conv"):
            name = f"multi_modal_distillation.self_attention.{pair}.{part}.weight"
            out |= {name: (tasks, tasks, 3, 3)}
    return out | dilated("heads.S", classes, tasks) | dilated("heads.D", 1, tasks) | dilated("heads.D_src", 1, tasks)


def parameters(shapes: Shapes) -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(BUFFERS))


def zeros(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes that take no room, in memory or in a file."""
    return {n: torch.zeros((), dtype=kind(n)).expand(shape) for n, shape in shapes.items()}


def random(shapes: Shapes, seed: int) -> dict[str, torch.Tensor]:
    """Values like those of a trained network, each tensor's its own."""
    g = torch.Generator().manual_seed(seed)
    out = {n: torch.randn(shape, generator=g) * 0.3 for n, shape in shapes.items()}
    return {n: (t.abs() + 0.5 if n.endswith("running_var") else t).to(kind(n)) for n, t in out.items()}


def kind(name: str) -> torch.dtype:
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


def mmcv(student: Mapping, teacher: Mapping | None, *more: Mapping, config: str = "", step: int = 40000) -> dict:
    """A file as mmcv writes it: the trainer's whole state dict, plain values, and an optimiser's state."""
    state = {f"model.{n}": t for n, t in student.items()}
    for tensors in ({f"ema_model.{n}": t for n, t in (teacher or {}).items()}, *more):
        state |= tensors
    meta = {"CLASSES": ("road", "sidewalk"), "PALETTE": [[128, 64, 128]], "config": config, "iter": step, "seed": 0}
    moments = {"step": step, "exp_avg": torch.zeros(2)}
    group = {"lr": 6e-5, "betas": (0.9, 0.999), "params": [0]}
    return {"meta": meta, "state_dict": state, "optimizer": {"state": {0: moments}, "param_groups": [group]}}


def in_transformers(tensors: Mapping[str, torch.Tensor], version: int) -> Iterator[tuple[str, torch.Tensor]]:
    """NVlabs' names as those of transformers 4 or 5; the joint K and V are cut in two."""
    inside = {
        4: {"norm1": "layer_norm_1", "norm2": "layer_norm_2", "attn.q": "attention.self.query",
            "attn.k": "attention.self.key", "attn.v": "attention.self.value", "attn.sr": "attention.self.sr",
            "attn.norm": "attention.self.layer_norm", "attn.proj": "attention.output.dense",
            "mlp.fc1": "mlp.dense1", "mlp.fc2": "mlp.dense2", "mlp.dwconv.dwconv": "mlp.dwconv.dwconv"},
        5: {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.q": "attention.q_proj",
            "attn.k": "attention.k_proj", "attn.v": "attention.v_proj",
            "attn.sr": "attention.sequence_reduction.sequence_reduction",
            "attn.norm": "attention.sequence_reduction.layer_norm", "attn.proj": "attention.o_proj",
            "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "mlp.dwconv.dwconv": "mlp.dwconv.dwconv"},
    }[version]  # fmt: skip
    for name, tensor in tensors.items():
        part, *middle, leaf = name.split(".")
        stage = int(part[-1]) - 1
        if part.startswith("block"):
            where = f"encoder.block.{stage}.{middle[0]}" if version == 4 else f"stages.{stage}.blocks.{middle[0]}"
            module = ".".join(middle[1:])
            if module == "attn.kv":
                half = len(tensor) // 2
                yield f"{where}.{inside['attn.k']}.{leaf}", tensor[:half].clone()
                yield f"{where}.{inside['attn.v']}.{leaf}", tensor[half:].clone()
            else:
                yield f"{where}.{inside[module]}.{leaf}", tensor
        elif part.startswith("patch_embed"):
            where = f"encoder.patch_embeddings.{stage}" if version == 4 else f"stages.{stage}.patch_embeddings"
            yield f"{where}.{'proj' if middle == ['proj'] else 'layer_norm'}.{leaf}", tensor
        else:
            where = f"encoder.layer_norm.{stage}" if version == 4 else f"stages.{stage}.layer_norm"
            yield f"{where}.{leaf}", tensor
