"""Sliding windows against a slow loop over pixels, scales and mirror images against a loop over pixels and views."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.hrda import HRDASegmentor
from uda_seg.models.inference import Inference, resized_argmax, slide_logits, whole_logits
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.small import ResidualEncoder


def predict(image: Tensor) -> Tensor:
    """Depends on the place inside the window, so that a window put elsewhere shows."""
    ramp = torch.arange(image.shape[-2])[:, None] * 100.0 + torch.arange(image.shape[-1])
    return torch.cat([image * ramp, image.mean(dim=(2, 3), keepdim=True) + ramp.expand(len(image), 1, -1, -1)], 1)


def slow(image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    height, width = image.shape[-2:]
    h, w = min(crop[0], height), min(crop[1], width)
    total, count = torch.zeros(len(image), 6, height, width), torch.zeros(height, width)
    y, rows = 0, []
    while True:
        rows.append(min(y, height - h))
        if y + h >= height:
            break
        y += stride[0]
    x, columns = 0, []
    while True:
        columns.append(min(x, width - w))
        if x + w >= width:
            break
        x += stride[1]
    for y in rows:
        for x in columns:
            total[:, :, y : y + h, x : x + w] += predict(image[:, :, y : y + h, x : x + w])
            count[y : y + h, x : x + w] += 1
    return total / count


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    crop=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    step=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    windows=st.integers(1, 7),
    batch=st.integers(1, 2),
)
def test_slide_is_the_mean_over_windows(
    size: tuple[int, int], crop: tuple[int, int], step: tuple[int, int], windows: int, batch: int
) -> None:
    stride = (min(step[0], crop[0]), min(step[1], crop[1]))
    image = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slide_logits(predict, image, crop, stride, windows), slow(image, crop, stride))


@pytest.mark.parametrize(("windows", "forwards"), [(1, 3), (2, 2), (8, 1)])
def test_cityscapes_at_half_size_takes_three_windows(windows: int, forwards: int) -> None:
    seen: list[int] = []

    def count(image: Tensor) -> Tensor:
        assert image.shape[-2:] == (512, 512)
        seen.append(len(image))
        return image

    image = torch.rand(1, 3, 512, 1024)
    torch.testing.assert_close(slide_logits(count, image, (512, 512), (256, 256), windows), image)
    assert (len(seen), sum(seen)) == (forwards, 3)


def test_a_crop_as_large_as_the_image_is_the_whole_image() -> None:
    image = torch.rand(2, 3, 9, 7)
    assert torch.equal(slide_logits(predict, image, (9, 9), (3, 3)), whole_logits(predict, image))


def test_results_are_resized_bilinearly() -> None:
    image = torch.rand(1, 3, 8, 8)
    want = F.interpolate(predict(image), size=(16, 24), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole_logits(predict, image, (16, 24)), want)
    torch.testing.assert_close(slide_logits(predict, image, (8, 8), (4, 4), size=(16, 24)), want)


class Network:
    """Stands for a Segmentor: whatever `predict` above says of the view it is given."""

    smallest = 1

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def predict(self, view: Tensor) -> Tensor:
        self.seen.append(tuple(view.shape))
        return predict(view) / 100


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[C, h, w] -> [C, *size] pixel by pixel: half-pixel centres, borders repeated."""
    _, h, w = image.shape
    out = np.zeros((len(image), *size))
    for y in range(size[0]):
        for x in range(size[1]):
            v = min(max((y + 0.5) * h / size[0] - 0.5, 0), h - 1)
            u = min(max((x + 0.5) * w / size[1] - 0.5, 0), w - 1)
            top, left = math.floor(v), math.floor(u)
            for row, a in ((top, 1 - v + top), (min(top + 1, h - 1), v - top)):
                for column, b in ((left, 1 - u + left), (min(left + 1, w - 1), u - left)):
                    out[:, y, x] += a * b * image[:, row, column]
    return out


def looked_at(image: Tensor, size: tuple[int, int], how: Inference) -> np.ndarray:
    """The averaged scores of one image, [C, *size], from its definition."""
    height, width = image.shape[-2:]
    seen = []
    for scale in how.scales:
        shape = (round(scale * height), round(scale * width))
        view = torch.from_numpy(bilinear(image[0].double().numpy(), shape)).float()[None]
        for mirrored in (False, True) if how.flip else (False,):
            given = torch.from_numpy(view.numpy()[..., ::-1].copy()) if mirrored else view
            logits = (predict(given) if how.window is None else slow(given, how.window, how.stride)) / 100
            scores = bilinear(logits[0].double().numpy(), size)
            if how.average == "probabilities":
                scores = np.exp(scores) / np.exp(scores).sum(0)
            seen.append(scores[..., ::-1] if mirrored else scores)
    return np.mean(seen, axis=0)


@pytest.mark.parametrize("size", [(8, 12), (13, 9)])
@pytest.mark.parametrize("window", [None, (5, 6)])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize(("scales", "flip"), [((0.5, 1.0, 1.75), True), ((0.75, 1.25), False), ((1.0,), True)])
def test_views_are_averaged_at_the_size_of_the_result(scales, flip, average, window, size):
    how = Inference(window, (3, 4), 2, scales, flip, average)
    image = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    found = how(Network(), image, size)
    expected = looked_at(image, size, how)
    scores = found.softmax(1) if average == "probabilities" else found
    np.testing.assert_allclose(scores[0].numpy(), expected, rtol=2e-4, atol=2e-5)
    assert (how.label(Network(), image, size)[0].numpy() == expected.argmax(0)).mean() > 0.99  # ties in float32


def test_one_view_is_the_network_itself():
    image = torch.rand(2, 3, 8, 12)
    assert torch.equal(Inference()(Network(), image), predict(image) / 100)
    assert torch.equal(
        Inference((5, 6), (3, 4))(Network(), image), slide_logits(Network().predict, image, (5, 6), (3, 4))
    )
    network = Network()
    half = Inference(scales=(0.5,))(network, image)
    assert network.seen == [(2, 3, 4, 6)]
    assert half.shape == (2, 6, 8, 12)


@pytest.mark.parametrize("window", [None, (16, 16)])
@pytest.mark.parametrize("size", [(1, 1), (3, 640), (70, 2), (28, 28)])
@pytest.mark.parametrize("network", ["daformer_small", "hrda_small", "mit"])
def test_images_smaller_than_a_network_takes_are_padded_by_their_border(network, size, window):
    encoder = MixVisionTransformer("b0", dims=(2, 4, 10, 16), depths=(1, 1, 1, 1)) if network == "mit" else None
    encoder = encoder or ResidualEncoder(widths=(4, 4, 4, 4), blocks=(1, 1, 1, 1))
    kind = HRDASegmentor if network == "hrda_small" else Segmentor
    small = kind(encoder, functools.partial(DAFormerHead, width=4), num_classes=5).eval()
    image, side = torch.rand(1, 3, *size), small.smallest
    if window and min(window) < side:
        window = (side, side)
    how = Inference(window, (8, 8), scales=(1.0,))
    with torch.no_grad():
        found = how(small, image)
        rows = torch.arange(max(size[0], side)).clamp(max=size[0] - 1)
        columns = torch.arange(max(size[1], side)).clamp(max=size[1] - 1)
        whole = how(small, image[:, :, rows][..., columns])
    assert found.shape == (1, 5, *size)
    assert torch.equal(found, whole[..., : size[0], : size[1]])
    if side > 1:
        with pytest.raises(RuntimeError), torch.no_grad():
            small.predict(torch.rand(1, 3, side - 1, 64))


def test_labels_to_train_on_are_not_looked_at_several_times():
    how = Inference((5, 6), (3, 4), 2, (0.5, 1.0), True, "logits")
    assert how.views == 4
    assert how.single().views == 1
    assert (how.single().window, how.single().stride) == ((5, 6), (3, 4))


def test_a_vanished_probability_stays_finite():
    class Sure:
        smallest = 1

        def predict(self, view: Tensor) -> Tensor:
            return torch.stack([view[:, 0] * 0 + 1000, view[:, 0] * 0], 1)

    found = Inference(flip=True)(Sure(), torch.rand(1, 3, 4, 4))
    assert found.isfinite().all()
    assert torch.equal(found.softmax(1)[:, 0], torch.ones(1, 4, 4))


@settings(max_examples=30, deadline=None)
@given(
    small=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    classes=st.integers(1, 20),
    batch=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_the_best_class_a_class_at_a_time(small, size, classes, batch, seed):
    logits = torch.randn(batch, classes, *small, generator=torch.Generator().manual_seed(seed))
    before = logits.clone()
    resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    found = resized_argmax(logits, size)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), resized.argmax(1))
    assert torch.equal(logits, before)


def test_of_equal_classes_the_first_wins():
    assert resized_argmax(torch.zeros(1, 5, 3, 3), (3, 3)).sum() == 0
