"""Strong augmentation against the standard library's HSV, pixel by pixel, and against 51-tap blurs."""

from __future__ import annotations

import dataclasses
import itertools

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch

from reference import blur, jitter_pixel
from uda_seg.ops.augment import COLOUR_OPERATIONS, StrongDraw, draw_strong, gaussian_blur, strong_augment

# Of values up to 1: some ten operations in float32, or the nine taps of a blur, lose a few eps, and never 80 of them. A
# grey level is 400 times as much.
ROUNDING = 1e-5


def draw(batch: int, seed: int = 0, **switches: object) -> StrongDraw:
    drawn = draw_strong(batch, torch.Generator().manual_seed(seed))
    return dataclasses.replace(drawn, **{"jitter": False, "blur": False, **switches})


def images(batch: int, size: int, seed: int = 0) -> torch.Tensor:
    """Random colours with black, white, grey and pure ones among them, whose hue or saturation is special."""
    image = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))
    special = [
        (0, 0, 0),
        (1, 1, 1),
        (0.5, 0.5, 0.5),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (0, 1, 1),
        (1, 0, 1),
    ]
    for i, colour in enumerate(special):
        image[:, :, i // size, i % size] = torch.tensor(colour)
    return image


def jittered_slowly(image: torch.Tensor, drawn: StrongDraw) -> torch.Tensor:
    out = torch.empty_like(image)
    for b, y, x in itertools.product(range(len(image)), range(image.shape[2]), range(image.shape[3])):
        factors = {name: getattr(drawn, name)[b].item() for name in COLOUR_OPERATIONS}
        out[b, :, y, x] = torch.tensor(jitter_pixel(image[b, :, y, x].tolist(), drawn.order[b], factors))
    return out


@pytest.mark.parametrize("order", list(itertools.permutations(COLOUR_OPERATIONS)))
def test_jitter_in_every_order(order):
    image = images(2, 6)
    drawn = draw(2, seed=3, jitter=True, order=(order, order))
    assert strong_augment(image, drawn).numpy() == pytest.approx(jittered_slowly(image, drawn).numpy(), abs=ROUNDING)


@pytest.mark.parametrize("name", COLOUR_OPERATIONS)
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_one_operation_at_the_ends_of_its_range(name, end):
    neutral = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    factors = {n: torch.full((2,), v + (0.5 * end if n == name else 0.0)) for n, v in neutral.items()}
    drawn = draw(2, jitter=True, order=((name,), (name,)), **factors)
    image = images(2, 6, seed=1)
    assert strong_augment(image, drawn).numpy() == pytest.approx(jittered_slowly(image, drawn).numpy(), abs=ROUNDING)


def test_nothing_drawn_changes_nothing():
    image = images(1, 16)
    assert torch.equal(strong_augment(image, draw(1)), image)


def test_an_image_does_not_depend_on_its_neighbours():
    image, drawn = images(3, 16), draw(3, jitter=True, blur=True)
    whole = strong_augment(image, drawn)
    for b in range(3):
        alone = strong_augment(image[b : b + 1], drawn.of(b))
        assert alone.numpy() == pytest.approx(whole[b : b + 1].numpy(), abs=ROUNDING)


def test_images_with_orders_of_their_own():
    drawn = dataclasses.replace(
        draw_strong(5, torch.Generator().manual_seed(4), own_order=True), jitter=True, blur=False
    )
    assert len(set(drawn.order)) > 2
    assert all(sorted(order) == sorted(COLOUR_OPERATIONS) for order in drawn.order)
    image = images(5, 6)
    assert strong_augment(image, drawn).numpy() == pytest.approx(jittered_slowly(image, drawn).numpy(), abs=ROUNDING)


def test_what_a_batch_shares():
    shared, own = draw(4, seed=2), draw_strong(4, torch.Generator().manual_seed(2), own_sigma=False)
    assert len(set(shared.order)) == 1
    assert len(set(shared.sigma.tolist())) == 4
    assert len(set(own.sigma.tolist())) == 1
    assert 0.15 <= own.sigma[0] <= 1.15


def test_the_default_draws_what_it_always_drew():
    """Written out: two switches, one order, four factors and a standard deviation an image."""
    drawn, g = draw_strong(3, torch.Generator().manual_seed(7)), torch.Generator().manual_seed(7)
    jitter, blurred = torch.rand(2, generator=g).tolist()
    order = torch.randperm(4, generator=g).tolist()
    factors, sigma = 0.2 * (2 * torch.rand(4, 3, generator=g) - 1), torch.rand(3, generator=g)
    names = ("brightness", "contrast", "saturation", "hue")
    assert (drawn.jitter, drawn.blur) == (jitter < 0.8, blurred < 0.5)
    assert drawn.order == (tuple(names[i] for i in order),) * 3
    for name, centre, factor in zip(names, (0, 1, 1, 0), factors, strict=True):
        assert torch.equal(getattr(drawn, name), factor + centre)
    assert torch.equal(drawn.sigma, 0.15 + (1.15 - 0.15) * sigma)


@pytest.mark.parametrize("sigma", [0.15, 0.5, 0.9, 1.15])
def test_nine_taps_are_within_a_tenth_of_a_grey_level_of_fifty_one(sigma):
    image = torch.from_numpy((np.random.default_rng(0).random((1, 1, 64, 72)) > 0.5).astype(np.float32))
    radius = draw(1).radius
    assert radius == 4
    ours = gaussian_blur(image, torch.tensor([sigma]), radius)[0, 0].numpy()
    plane = image[0, 0].numpy().astype(np.float64)
    assert np.abs(ours - blur(plane, sigma, 51)).max() < 0.1 / 255
    assert np.abs(ours - cv2.GaussianBlur(plane, (51, 51), sigma, borderType=cv2.BORDER_REFLECT_101)).max() < 0.1 / 255
    filtered = scipy.ndimage.gaussian_filter(plane, sigma, mode="mirror", radius=25)
    assert np.abs(ours - filtered).max() < 0.1 / 255


def test_each_image_has_its_own_sigma():
    image = images(2, 24)
    both = gaussian_blur(image, torch.tensor([0.3, 1.1]), 4)
    for b, sigma in enumerate([0.3, 1.1]):
        for c in range(3):
            slow = blur(image[b, c].double().numpy(), torch.tensor(sigma).item(), 9)
            assert both[b, c].numpy() == pytest.approx(slow, abs=ROUNDING)


def test_float32_even_under_autocast():
    image, drawn = images(1, 24), draw(1, jitter=True, blur=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = strong_augment(image, drawn)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, strong_augment(image, drawn))


def test_ranges_and_rates_of_the_draws():
    g = torch.Generator().manual_seed(0)
    draws = [draw_strong(4, g) for _ in range(2000)]
    assert np.mean([d.jitter for d in draws]) == pytest.approx(0.8, abs=0.04)
    assert np.mean([d.blur for d in draws]) == pytest.approx(0.5, abs=0.05)
    assert len({d.order for d in draws}) == 24
    centres = {
        "brightness": (-0.2, 0.2),
        "contrast": (0.8, 1.2),
        "saturation": (0.8, 1.2),
        "hue": (-0.2, 0.2),
    }
    for name, (low, high) in {**centres, "sigma": (0.15, 1.15)}.items():
        values = torch.stack([getattr(d, name) for d in draws])
        assert values.shape == (2000, 4)
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02)
