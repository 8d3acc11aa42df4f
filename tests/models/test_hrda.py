"""HRDA against plain loops: what is blended, where the detail lies, how windows slide, what is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from uda_seg.callbacks.panels import Panels
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.methods.corda import CorDA
from uda_seg.methods.labelled import Labelled
from uda_seg.methods.options.corda import CorDAOptions
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.self_training import SelfTraining
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.deeplab import DeepLabV2Head, ResNet101
from uda_seg.models.hrda import Box, ContextView, HRDASegmentor, draw_box
from uda_seg.models.inference import slide_logits
from uda_seg.models.language import LanguageHead
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.norm import batch_norms, frozen_statistics
from uda_seg.models.segmentor import Encoder, Features, Head, Segmentor
from uda_seg.models.small import ResidualEncoder

CLASSES = 4
SMALL = partial(ResidualEncoder, (4, 6, 8, 8), (1, 1, 1, 1))
ENCODERS = {
    "residual": SMALL,
    "mit": partial(MixVisionTransformer, "b0", dims=(4, 8, 10, 16), depths=(1, 1, 2, 1), drop_path=0.5),
    "resnet": partial(ResNet101, blocks=(1, 1, 2, 1), width=4),
}


def network(encoder: Callable[[], Encoder] = SMALL, head=None, **options) -> HRDASegmentor:
    """A tiny HRDA whose logits, attention and statistics are no longer near zero or one."""
    torch.manual_seed(0)
    head = head or partial(DAFormerHead, width=8, dilations=(1, 2))
    built = HRDASegmentor(encoder(), head, CLASSES, **{"detail": (32, 32), "attention_width": 4, **options})
    for name, p in built.heads.named_parameters():
        if "conv_seg" in name:
            nn.init.normal_(p)
    for norm in batch_norms(built):
        nn.init.normal_(norm.running_mean, std=0.1)
    return built


def bilinear(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[B, C, h, w] -> [B, C, H, W], a target pixel at a time, half-pixel centres."""

    def corners(i: int, cells: int, pixels: int) -> tuple[int, int, float]:
        at = max((i + 0.5) * cells / pixels - 0.5, 0.0)
        low = min(int(at), cells - 1)
        return low, min(low + 1, cells - 1), at - low

    out = np.zeros((*x.shape[:2], *size))
    for i in range(size[0]):
        a, b, v = corners(i, x.shape[2], size[0])
        for j in range(size[1]):
            c, d, u = corners(j, x.shape[3], size[1])
            top, bottom = ((1 - u) * x[:, :, r, c] + u * x[:, :, r, d] for r in (a, b))
            out[:, :, i, j] = (1 - v) * top + v * bottom
    return out


def plain_logits(net: HRDASegmentor, image: np.ndarray | Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Decoder logits and sigmoid attention of images that are as large as the encoder gets them."""
    stages = net.encoder((torch.as_tensor(image).float() - net.mean) / net.std)
    pair = net.heads["main"]
    attention = 1 / (1 + np.exp(-pair.scale_attention(stages).double().numpy()))
    return pair.head(stages).double().numpy(), attention


def plain_ce(logits: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    logits, total = bilinear(logits, label.shape[1:]), 0.0
    for b, y, x in np.ndindex(*label.shape):
        if label[b, y, x] != 255:
            scores = logits[b, :, y, x]
            total += weight[b, y, x] * (np.log(np.exp(scores).sum()) - scores[label[b, y, x]])
    return total / label.size


def labels(seed: int, *shape: int) -> Tensor:
    found = torch.randint(0, CLASSES + 1, shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(found == CLASSES, 255, found).to(torch.uint8)


# ---------------------------------------------------------------------- published sizes and names


def count(module: nn.Module) -> tuple[int, int]:
    return len(module.state_dict()), sum(p.numel() for p in module.parameters())


def test_published_size_names_and_shapes() -> None:
    with torch.device("meta"):
        net = HRDASegmentor(MixVisionTransformer("b5"), DAFormerHead, 19)
        plain = Segmentor(MixVisionTransformer("b5"), DAFormerHead, 19)
        shared = HRDASegmentor(MixVisionTransformer("b5"), DAFormerHead, 19, attention="shared")
    assert count(net) == (1126, 85_685_990)
    parameters = [name for name, _ in net.named_parameters()]
    assert sum(name.startswith("heads.") for name in parameters) == 47
    assert sum("norm" in name for name in parameters) == 322
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    for name, t in plain.state_dict().items():
        assert shapes.pop(name.replace("heads.main.", "heads.main.head.")) == tuple(t.shape), name
    norm = ("weight", "bias", "running_mean", "running_var")
    prefix = "heads.main.scale_attention"
    expected = {f"{prefix}.embed_layers.{i}.proj.weight": (256, c) for i, c in enumerate((64, 128, 320, 512))}
    expected |= {f"{prefix}.embed_layers.{i}.proj.bias": (256,) for i in range(4)}
    expected |= {f"{prefix}.fuse_layer.conv.weight": (256, 1024, 1, 1)}
    expected |= {f"{prefix}.fuse_layer.bn.{name}": (256,) for name in norm}
    expected |= {f"{prefix}.fuse_layer.bn.num_batches_tracked": ()}
    expected |= {f"{prefix}.conv_seg.weight": (19, 256, 1, 1), f"{prefix}.conv_seg.bias": (19,)}
    assert shapes == expected
    assert shared.heads["main"].scale_attention.conv_seg.weight.shape == (1, 256, 1, 1)


def test_lcmsm_at_two_resolutions_has_one_attention_more_than_at_one() -> None:
    with torch.device("meta"):
        net = HRDASegmentor(MixVisionTransformer("b5"), partial(DAFormerHead, width=512), 19)
        net.attach("language", LanguageHead)
        attention = count(net.heads["main"].scale_attention)
    assert attention == (1126 - 1110, 85_685_990 - 85_155_283)
    assert count(net) == (1170 + attention[0], 109_923_929 + attention[1])


# ---------------------------------------------------------------------- training: one window


@pytest.mark.parametrize("attention", ["class", "shared"])
def test_a_training_forward_is_its_formula(attention: str) -> None:
    net = network(attention=attention).eval()
    image, label, weight = torch.rand(2, 3, 64, 96), labels(1, 2, 64, 96), torch.rand(2, 64, 96)
    boxes, views = [], net.views
    net.views = lambda image: boxes.append(views(image)) or boxes[0]
    with torch.no_grad():
        result = net.supervise(image, label, weight)
        box = boxes[0][1].box
        y, x = box.top, box.left
        assert (y % 8, x % 8, box.height, box.width) == (0, 0, 32, 32)
        assert (y, x) != (0, 0)  # or a displaced detail would not show
        low, gate = plain_logits(net, bilinear(image.numpy(), (32, 48)))
        high, _ = plain_logits(net, image[:, :, y : y + 32, x : x + 32])
    for i, j in np.ndindex(8, 12):
        if not (y / 8 <= i < (y + 32) / 8 and x / 8 <= j < (x + 32) / 8):
            gate[:, :, i, j] = 0
    canvas = np.zeros((2, CLASSES, 16, 24))
    canvas[:, :, y // 4 : y // 4 + 8, x // 4 : x // 4 + 8] = high
    blended = bilinear((1 - gate) * low, (16, 24)) + bilinear(gate, (16, 24)) * canvas
    np.testing.assert_allclose(result.logits.numpy(), blended, rtol=1e-4, atol=1e-4)
    inside = (slice(None), slice(y, y + 32), slice(x, x + 32))
    y_, w = label.numpy(), weight.numpy()
    want = 0.9 * plain_ce(blended, y_, w) + 0.1 * plain_ce(high, y_[inside], w[inside])
    assert float(result.loss) == pytest.approx(want, rel=1e-4)
    assert [s.shape[-2:] for s in result.features.stages] == [(8, 12), (4, 6), (2, 3), (1, 2)]
    assert result.fused.shape == (2, 8, 8, 12)


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    detail=st.tuples(st.integers(4, 90), st.integers(4, 90)),
    multiple=st.sampled_from([1, 4, 8, 16]),
    offsets=st.sampled_from(["all", "released"]),
    seed=st.integers(0, 99),
)
def test_the_detail_lies_inside_on_multiples(size, detail, multiple, offsets, seed) -> None:
    torch.manual_seed(seed)
    box = draw_box(size, detail, multiple, offsets)
    assert (box.height, box.width) == (min(detail[0], size[0]), min(detail[1], size[1]))
    assert box.top % multiple == box.left % multiple == 0
    assert 0 <= box.top <= size[0] - box.height
    assert 0 <= box.left <= size[1] - box.width


@pytest.mark.parametrize(("offsets", "last"), [("all", 512), ("released", 504)])
def test_every_multiple_of_eight_is_drawn(offsets: str, last: int) -> None:
    torch.manual_seed(0)
    boxes = [draw_box((1024, 1024), (512, 512), 8, offsets) for _ in range(1500)]
    assert {b.top for b in boxes} == {b.left for b in boxes} == set(range(0, last + 1, 8))
    assert abs(np.corrcoef([b.top for b in boxes], [b.left for b in boxes])[0, 1]) < 0.1


def test_each_forward_draws_its_own_box() -> None:
    net = network().eval()
    image = torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        assert len({net.views(image)[1].box for _ in range(8)}) > 4


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 100), st.integers(1, 60), st.integers(1, 40), st.integers(3, 60))
def test_boxes_that_touch_in_the_image_touch_in_every_map(length, first, second, cells) -> None:
    first, second = min(first, length - 2), min(second, length - 1)
    second = min(second, length - first)
    a = Box(0, 0, first, first, (length, length)).at((cells, cells))[0]
    b = Box(first, first, second, second, (length, length)).at((cells, cells))[0]
    assert (a.start, a.stop) == (0, b.start)
    assert abs(b.stop - (first + second) * cells / length) <= 0.5


def test_the_attention_counts_inside_of_the_detail_alone() -> None:
    net = network().eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        views = net.views(image)
        views[1].box = Box(16, 24, 32, 32, (64, 64))
        low, high = torch.randn(1, CLASSES, 8, 8), torch.randn(1, CLASSES, 8, 8)
        one = net.combine(views, [low, high]).logits
        other = net.combine(views, [low, high + 1000]).logits
        views[0].attention = torch.zeros_like(views[0].attention)
        none = net.combine(views, [low, high]).logits
    changed = (one != other).flatten(0, 1).any(0).nonzero()
    assert (changed.min(0).values.tolist(), changed.max(0).values.tolist()) == ([4, 6], [11, 13])
    away = torch.ones(16, 16, dtype=torch.bool)
    away[3:13, 5:15] = False  # attention is up-sampled bilinearly, and so reaches one cell beyond
    assert torch.equal(one[..., away], none[..., away])
    assert not torch.equal(one[..., 4:12, 6:14], none[..., 4:12, 6:14])


def test_weights_that_broadcast_weigh_the_detail_too() -> None:
    net = network().eval()
    image, label = torch.rand(2, 3, 64, 64), labels(0, 2, 64, 64)
    with torch.no_grad():
        views = net.views(image)
        prediction = net.combine(views, [net.decode(view)[0] for view in views])
    plain = float(prediction.loss(label))
    assert float(prediction.loss(label, torch.tensor(0.25))) == pytest.approx(plain / 4, rel=1e-5)
    assert float(prediction.loss(label, torch.full((2, 1, 1), 2.0))) == pytest.approx(plain * 2, rel=1e-5)
    assert prediction.share == 0.1
    prediction.share = 0.0
    whole = float(prediction.loss(label))
    prediction.share = 1.0
    assert plain == pytest.approx(0.9 * whole + 0.1 * float(prediction.loss(label)), rel=1e-5)


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_gradients_reach_every_part(encoder: str) -> None:
    head = partial(DeepLabV2Head, dilations=(1, 2)) if encoder == "resnet" else None
    options = {"drop_path": 0.0} if encoder == "mit" else {}
    net = network(
        partial(ENCODERS[encoder], **options), head, detail=(64, 64)
    )  # the coarsest attention needs two tokens
    net.supervise(torch.rand(2, 3, 128, 128), labels(0, 2, 128, 128)).loss.backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    assert all(p.grad.abs().sum() > 0 for n, p in net.named_parameters() if n.endswith("weight"))


def test_the_detail_loss_alone_teaches_no_attention() -> None:
    net = network(detail_loss=1.0)
    net.supervise(torch.rand(2, 3, 64, 64), labels(0, 2, 64, 64)).loss.backward()
    pair = net.heads["main"]
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in pair.scale_attention.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in pair.head.named_parameters() if n.endswith("weight"))


def test_pixels_outside_of_the_detail_are_seen_at_low_resolution() -> None:
    """A checkerboard that vanishes at half resolution changes the loss in the detail alone."""
    net, label = network().eval(), labels(0, 1, 64, 64)
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 0.2 - 0.1
    image = torch.full((1, 3, 64, 64), 0.5)

    def loss(where: tuple[slice, slice]) -> float:
        torch.manual_seed(3)
        noisy = image.clone()
        noisy[(..., *where)] += board[where]
        with torch.no_grad():
            return float(net.supervise(noisy, label).loss)

    torch.manual_seed(3)
    box = draw_box((64, 64), (32, 32), 8)
    whole = (slice(0, 64), slice(0, 64))
    nothing, inside, everywhere = loss((slice(0, 0), slice(0, 0))), loss(box.at((64, 64))), loss(whole)
    assert nothing != pytest.approx(inside, rel=1e-4)
    assert inside == pytest.approx(everywhere, rel=1e-5)


# ---------------------------------------------------------------------- saving memory


def step(net: HRDASegmentor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients and buffers of a forward; the bytes that the encoder keeps for a backward pass."""
    kept = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.numel() * x.element_size() * (not isinstance(x, nn.Parameter))
        return x

    torch.manual_seed(5)
    image, label = torch.rand(2, 3, 64, 64), labels(0, 2, 64, 64)
    net.supervise(image, label).loss.backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    buffers = {n: b.clone() for n, b in net.named_buffers() if b.is_floating_point()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        net.features(image)
    return gradients, buffers, kept


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_recomputing_gives_the_same_gradients_and_statistics_for_less_memory(encoder: str) -> None:
    plain, saving = (network(ENCODERS[encoder], activation_checkpointing=recompute) for recompute in (False, True))
    gradients, buffers, kept = step(plain)
    others, statistics, less = step(saving)
    assert gradients.keys() == others.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in buffers.items():
        assert torch.equal(statistics[name], value), name
    assert less < 0.8 * kept


def test_statistics_frozen_in_the_forward_stay_so_in_the_backward_pass() -> None:
    net = network(activation_checkpointing=True)
    before = copy.deepcopy(net.encoder.state_dict())
    with frozen_statistics(net.encoder):
        loss = net.supervise(torch.rand(2, 3, 64, 64), labels(0, 2, 64, 64)).loss
    loss.backward()
    after = net.encoder.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before if "running" in n)


@pytest.mark.parametrize("windows", [1, 4, 100])
def test_fewer_windows_a_forward_give_the_same_logits(windows: int) -> None:
    net = network().eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        want = net.predict(image)
        net.windows = windows
        torch.testing.assert_close(net.predict(image), want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- test: sliding windows


class Pixels(Encoder):
    """The image itself."""

    channels = (3,)
    strides = (1,)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


class Ramp(Head):
    """Logits that depend on the place inside of a window, so that one put elsewhere shows."""

    width = 3

    def __init__(self, channels, num_classes) -> None:
        super().__init__()

    def fuse(self, stages: list[Tensor]) -> Tensor:
        return stages[0]

    def classify(self, fused: Tensor) -> Tensor:
        ramp = torch.arange(fused.shape[-2])[:, None] * 10.0 + torch.arange(fused.shape[-1])
        return torch.cat([fused * ramp, fused.mean((2, 3), keepdim=True) + ramp.expand(len(fused), 1, -1, -1)], 1)


@settings(max_examples=40, deadline=None)
@given(
    half=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    detail=st.tuples(st.integers(2, 14), st.integers(2, 14)),
    stride=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    windows=st.one_of(st.none(), st.integers(1, 5)),
)
def test_sliding_detail_is_the_mean_over_windows(half, detail, stride, windows) -> None:
    height, width = 2 * half[0], 2 * half[1]
    stride = (min(stride[0], detail[0]), min(stride[1], detail[1]))
    net = HRDASegmentor(Pixels(), Ramp, 6, mean=(0, 0, 0), std=(1, 1, 1), detail=detail,
                        detail_stride=stride, detail_windows=windows, attention_width=2)  # fmt: skip
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    h, w = min(detail[0], height), min(detail[1], width)

    def starts(length: int, crop: int, step: int) -> list[int]:
        found = [0]
        while found[-1] + crop < length:
            found.append(min(found[-1] + step, length - crop))
        return found

    total, seen = torch.zeros(2, 6, height, width), torch.zeros(height, width)
    for y in starts(height, h, stride[0]):
        for x in starts(width, w, stride[1]):
            total[:, :, y : y + h, x : x + w] += Ramp(None, None).classify(image[:, :, y : y + h, x : x + w])
            seen[y : y + h, x : x + w] += 1
    torch.testing.assert_close(net.sliding(image, (height, width), "main"), total / seen)


def test_a_crop_of_1024_takes_nine_windows_in_one_forward() -> None:
    net = HRDASegmentor(Pixels(), Ramp, 6, attention_width=2)
    seen: list[tuple[int, ...]] = []
    decode = net.decode

    def spy(features: Features, head: str = "main", **context):
        seen.append(tuple(features.stages[0].shape))
        return decode(features, head, **context)

    net.decode = spy
    with torch.no_grad():
        net.predict(torch.rand(1, 3, 1024, 1024))
    assert seen == [(1, 3, 512, 512), (9, 3, 512, 512)]


def test_prediction_is_its_formula() -> None:
    net = network(detail_stride=(32, 16)).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        got = net.predict(image).numpy()
        low, gate = plain_logits(net, bilinear(image.numpy(), (32, 32)))
        total, seen = np.zeros((1, CLASSES, 16, 16)), np.zeros((16, 16))
        for y in (0, 32):
            for x in (0, 16, 32):
                high, _ = plain_logits(net, image[:, :, y : y + 32, x : x + 32])
                total[:, :, y // 4 : y // 4 + 8, x // 4 : x // 4 + 8] += high
                seen[y // 4 : y // 4 + 8, x // 4 : x // 4 + 8] += 1
    blended = bilinear((1 - gate) * low, (16, 16)) + bilinear(gate, (16, 16)) * (total / seen)
    np.testing.assert_allclose(got, bilinear(blended, (64, 64)), rtol=1e-4, atol=1e-4)


def test_fixed_attention_is_one_of_the_resolutions() -> None:
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        low, high = (network(fixed_attention=value).eval() for value in (0.0, 1.0))
        context, _ = plain_logits(low, bilinear(image.numpy(), (32, 32)))
        np.testing.assert_allclose(low.predict(image).numpy(), bilinear(bilinear(context, (16, 16)), (64, 64)),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
        np.testing.assert_allclose(high.predict(image).numpy(),
                                   bilinear(high.sliding(image, (16, 16), "main").numpy(), (64, 64)),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("encoder", list(ENCODERS))
@pytest.mark.parametrize("size", [(64, 64), (75, 117), (66, 131)])
def test_images_of_any_size_are_trained_on_and_predicted(encoder: str, size: tuple[int, int]) -> None:
    head = partial(DeepLabV2Head, dilations=(1, 2)) if encoder == "resnet" else None
    net = network(ENCODERS[encoder], head)
    image = torch.rand(2, 3, *size)
    assert net.supervise(image, labels(0, 2, *size)).loss.isfinite()
    with torch.no_grad():
        logits = net.eval().predict(image)
    assert logits.shape == (2, CLASSES, *size)
    assert logits.isfinite().all()


def test_a_sliding_test_of_one_window_is_the_whole_image() -> None:
    net = network().eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        whole = net.predict(image)
        torch.testing.assert_close(slide_logits(net.predict, image, (64, 96), (32, 48)), whole)
        slid = slide_logits(net.predict, image, (64, 64), (32, 32))
        left = net.predict(image[..., :64])
    assert slid.shape == whole.shape
    torch.testing.assert_close(slid[..., :32], left[..., :32])  # where no other window reaches


# ---------------------------------------------------------------------- what methods attach and read


def test_features_and_decode_are_of_the_low_resolution() -> None:
    net = network().eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        logits, fused = net.decode(net.features(image))
        want, _ = plain_logits(net, bilinear(image.numpy(), (32, 32)))
    np.testing.assert_allclose(logits.numpy(), want, rtol=1e-4, atol=1e-4)
    assert fused.shape == (1, 8, 8, 8)
    assert net.head() is net.heads["main"].head


def test_other_heads_share_the_attention_and_see_both_resolutions() -> None:
    net = network()
    net.attach("language", partial(LanguageHead, width=8, dilations=(1, 2)))
    net.eval()
    nn.init.normal_(net.heads["language"].conv_seg.weight)
    image, text = torch.rand(1, 3, 64, 64), torch.randn(CLASSES, 8)
    with torch.no_grad():
        before = net.predict(image, "language", text=text)
        nn.init.constant_(net.heads["main"].scale_attention.conv_seg.bias, -100.0)
        nn.init.zeros_(net.heads["main"].scale_attention.conv_seg.weight)
        low_alone = net.predict(image, "language", text=text)
        logits, _ = net.decode(net.features(image), "language", text=text)
    assert not torch.allclose(before, low_alone, atol=1e-2)
    want = bilinear(bilinear(logits.numpy(), (16, 16)), (64, 64))
    np.testing.assert_allclose(low_alone.numpy(), want, rtol=1e-4, atol=1e-4)
    assert not any("attention" in name for name in net.heads["language"].state_dict())
    net.train().supervise(image.expand(2, -1, -1, -1), labels(0, 2, 64, 64), head="language", text=text).loss.backward()
    assert net.heads["main"].head.conv_seg.weight.grad is None
    assert net.heads["language"].conv_seg.weight.grad.abs().sum() > 0


def test_the_feature_distance_compares_low_resolutions(make_plan) -> None:
    """An encoder that has not moved is at distance zero from its start."""
    torch.manual_seed(0)
    encoder = MixVisionTransformer("b0", dims=(4, 8, 10, 16), depths=(1, 1, 1, 1), drop_path=0.0)
    encoder.pretrained = True
    net = HRDASegmentor(encoder, partial(DAFormerHead, width=8), 19, detail=(32, 32), attention_width=4)
    module = SelfTraining(net, make_plan(crop=(64, 64)), SelfTrainingOptions(feature_distance=1.0))
    module.mean_over_ranks = lambda value: value
    car = CITYSCAPES.names.index("car")
    source = Labelled(torch.rand(2, 3, 64, 64), torch.full((2, 64, 64), car, dtype=torch.uint8))
    features = net.supervise(source.image, source.label).features
    (term,) = module.feature_distance_terms(features, source)
    assert float(term.value.detach()) == 0.0
    with torch.no_grad():
        net.encoder.norm4.bias += 1.0
    features = net.supervise(source.image, source.label).features
    (term,) = module.feature_distance_terms(features, source)
    assert float(term.value.detach()) == pytest.approx(math.sqrt(16), rel=1e-4)


@pytest.mark.parametrize("initial", ["features", "main"])
def test_corda_trains_its_segmentations_on_the_detail_too(initial: str, make_plan, make_batch) -> None:
    torch.manual_seed(0)
    net = HRDASegmentor(SMALL(), partial(DAFormerHead, width=8), 19, detail=(16, 32), attention_width=4)
    module = CorDA(net, make_plan(), CorDAOptions(initial=initial))
    module.mean_over_ranks = module.max_over_ranks = lambda value: value
    batch = make_batch(depth=True)["source"]
    source = Labelled(batch.image / 255.0, batch.label, depth=batch.depth)
    module.eval()
    share = 1 / (source.label != 255).float().mean()
    torch.manual_seed(1)
    terms = {term.name: term.value for term in module.source_terms(source)}
    torch.manual_seed(1)
    final = net.supervise(source.image, source.label, share, head="two_task").loss
    assert float(terms["source/ce"].detach()) == pytest.approx(float(final.detach()), rel=1e-5)
    if initial == "main":
        torch.manual_seed(1)
        first = net.supervise(source.image, source.label, share, head="main").loss
        assert float(terms["source/initial_ce"].detach()) == pytest.approx(float(first.detach()), rel=1e-5)
    assert net.predict(source.image).shape == (2, 19, 32, 64)
    copied = copy.deepcopy(net)
    assert copied.heads["two_task"].main[0] is copied.heads["main"].head


@pytest.mark.parametrize("attention", ["class", "shared"])
def test_panels_show_whose_detail_is_believed(attention: str, make_plan, make_batch, tmp_path) -> None:
    """The attention of the class that is predicted there."""
    torch.manual_seed(0)
    head = partial(DAFormerHead, width=8)
    net = HRDASegmentor(SMALL(), head, 19, detail=(16, 32), attention_width=4, attention=attention)
    module = SelfTraining(net, make_plan(), SelfTrainingOptions(mask_weight=1.0))
    module.mean_over_ranks = module.max_over_ranks = lambda value: value
    module.panel = {}
    list(module.losses(make_batch()))
    shown = {name: tuple(t.shape) for name, t in module.panel.items() if name.endswith("attention")}
    assert shown == dict.fromkeys(("source_attention", "mixed_attention", "masked_attention"), (1, 1, 4, 8))
    picture = Panels(tmp_path, 1, CITYSCAPES)
    rows = picture.draw(module.panel)
    del module.panel["mixed_attention"]
    assert picture.draw(module.panel).shape != rows.shape  # a column less in the widest row
    logits, maps = torch.randn(2, CLASSES, 4, 8), torch.rand(2, CLASSES if attention == "class" else 1, 4, 8)
    got = ContextView([], maps).attention_of(logits)
    for b, y, x in np.ndindex(2, 4, 8):
        said = int(logits[b, :, y, x].argmax()) if attention == "class" else 0
        assert got[b, 0, y, x] == maps[b, said, y, x]


# ---------------------------------------------------------------------- what cannot be


def test_impossible_sizes_are_told() -> None:
    with pytest.raises(UserError, match=r"model\.detail=\[32\] is no size"):
        network(detail=(32,))
    with pytest.raises(UserError, match=r"model\.detail_stride=\[16\] is no size"):
        network(detail_stride=(16,))
    with pytest.raises(UserError, match=r"model\.detail_stride=\[33, 32\] is larger than model\.detail=\[32, 32\]"):
        network(detail_stride=(33, 32))
