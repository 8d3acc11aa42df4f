from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trees import blocks, image_of

from uda_seg.data import transforms
from uda_seg.data.batch import Sample
from uda_seg.data.transforms import CropRule, RareClass, Resize, fit_inside, is_dominated, pad, training_crop


def sample(size=(24, 32), ids=(0, 1, 2), seed=0, block=4):
    label = blocks(seed, size, list(ids), block)
    return Sample(image_of(label, seed), label, np.ones(size, np.uint8))


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((1052, 1914), (720, 1280), (704, 1280)),
        ((760, 1280), (760, 1280), (760, 1280)),
        ((1024, 2048), (512, 1024), (512, 1024)),
        ((1080, 1920), (540, 960), (540, 960)),
        ((1052, 1914), (1440, 2560), (1407, 2560)),
    ],
)
def test_resize_keeps_the_ratio_as_in_the_papers(size, box, expected):
    assert fit_inside(size, box) == expected


def test_resize_interpolates_the_image_and_repeats_the_label():
    label = np.array([[0, 7], [255, 3]], np.uint8)
    grown = Resize((8, 8))(Sample(np.repeat(label[..., None], 3, 2), label))
    np.testing.assert_array_equal(grown.label, np.kron(label, np.ones((4, 4), np.uint8)))
    assert len(np.unique(grown.image)) > 4


@pytest.mark.parametrize("size", [(31, 47), (52, 95), (120, 200)])
def test_resizes_as_pil_does(size):
    """Images by its own filters, where that is asked for; planes at the pixels that its nearest one takes, always."""
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 34, size).astype(np.uint8)
    found = []
    for name in ("bilinear", "pil_bilinear", "pil_bicubic"):
        resize = Resize((36, 64), keep_ratio=False, filter=name)
        found.append(resize(Sample(image, label)))
        np.testing.assert_array_equal(found[-1].label, np.asarray(Image.fromarray(label).resize((64, 36), 0)))
    for sample, code in zip(found[1:], (2, 3), strict=True):  # Pillow's numbers for them
        np.testing.assert_array_equal(sample.image, np.asarray(Image.fromarray(image).resize((64, 36), code)))
    assert (found[0].image != found[1].image).any()
    np.testing.assert_array_equal(found[0].image, cv2.resize(image, (64, 36), interpolation=cv2.INTER_LINEAR))


def test_resize_keeps_image_and_label_aligned():
    edge = np.repeat(np.arange(90) >= 46, 90).reshape(90, 90).astype(np.uint8)
    shrunk = Resize((30, 30))(Sample(np.repeat(edge[..., None] * 255, 3, 2), edge))
    np.testing.assert_array_equal(shrunk.label, shrunk.image[..., 0] > 127)


def test_the_ratio_is_given_up_and_depth_blended_only_where_that_is_asked_for():
    """CorDA's code squeezes SYNTHIA and blends GTA's invalid depth, which is 1, with its neighbours."""
    z = np.array([[1, 1, 9, 9]], np.float32).repeat(4, 0)
    sample = Sample(np.zeros((4, 4, 3), np.uint8), depth=z)
    assert Resize((2, 4))(sample).image.shape == (2, 2, 3)
    squeezed = Resize((2, 8), keep_ratio=False)(sample)
    assert squeezed.image.shape == (2, 8, 3)
    np.testing.assert_array_equal(squeezed.depth, [[1, 1, 1, 1, 9, 9, 9, 9]] * 2)
    blended = Resize((2, 8), keep_ratio=False, depth="bilinear")(sample)
    np.testing.assert_allclose(blended.depth, [[1, 1, 1, 3, 7, 9, 9, 9]] * 2)


def test_pad_marks_what_it_adds():
    padded = pad(Sample(np.full((2, 3, 3), 9, np.uint8), np.zeros((2, 3), np.uint8)), (4, 3))
    assert padded.image.shape == (4, 3, 3)
    assert not padded.image[2:].any()
    assert set(padded.label[2:].ravel()) == {255}
    assert padded.valid.tolist() == [[1] * 3] * 2 + [[0] * 3] * 2
    unlabelled = pad(Sample(np.ones((2, 3, 3), np.uint8)), (2, 3))
    assert unlabelled.label is None
    assert unlabelled.valid is None


@given(seed=st.integers(0, 10**6), height=st.integers(1, 30), width=st.integers(1, 40))
def test_a_crop_is_a_window_of_the_padded_image_or_its_mirror(seed, height, width):
    whole = sample(seed=seed % 7)
    window = training_crop(whole, CropRule((height, width)), np.random.default_rng(seed))
    assert window.image.shape == (height, width, 3)
    inside = window.valid == 1
    np.testing.assert_array_equal(window.image[..., 0][inside], window.label[inside])
    assert (window.label[~inside] == 255).all()
    padded = pad(whole, (height, width)).image
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width, 3))[:, :, 0]
    assert any((windows == i).all(axis=(2, 3, 4)).any() for i in (window.image, window.image[:, ::-1]))


@given(st.lists(st.integers(0, 2) | st.just(255), min_size=1, max_size=12), st.sampled_from([0.5, 0.75]))
def test_dominated_means_one_class_has_the_share_or_there_is_only_one(values, ratio):
    labelled = [v for v in values if v != 255]
    fine = len(set(labelled)) > 1 and max(labelled.count(v) for v in labelled) / len(labelled) < ratio
    assert is_dominated(np.array(values, np.uint8), ratio) == (not fine)


def test_the_crop_rule_avoids_dominated_crops_and_gives_up_in_the_end(monkeypatch):
    label = np.zeros((16, 64), np.uint8)
    label[:, 48:] = blocks(1, (16, 16), [1, 2, 3], 4)
    whole = Sample(image_of(label), label)

    def dominated(rule):
        crops = [training_crop(whole, rule, np.random.default_rng(s)) for s in range(100)]
        return np.mean([is_dominated(c.label, 0.75) for c in crops])

    free, ruled = dominated(CropRule((16, 16))), dominated(CropRule((16, 16), max_ratio=0.75))
    assert free > 0.6
    assert ruled < free**5  # of 10 draws each would have to fail
    flat = Sample(whole.image, np.zeros_like(label))
    for tries in (10, 11):
        draws = []
        monkeypatch.setattr(transforms, "crop", lambda *a, found=draws: found.append(a) or flat)
        training_crop(flat, CropRule((16, 16), max_ratio=0.75, tries=tries), np.random.default_rng(0))
        assert len(draws) == tries
    assert CropRule((16, 16)).tries == 10


def test_a_rare_class_is_looked_for_and_the_last_crop_is_kept(monkeypatch):
    label = np.zeros((16, 64), np.uint8)
    label[:, 40:56] = 5
    whole, rule = Sample(image_of(label), label), CropRule((16, 16))

    def shares(rare):
        crops = [training_crop(whole, rule, np.random.default_rng(s), rare) for s in range(100)]
        return np.mean([(c.label == 5).sum() > 64 for c in crops])

    assert shares(None) < 0.7
    assert shares(RareClass(5, 64, tries=10)) > 0.95
    draws = []
    original = transforms.random_crop
    monkeypatch.setattr(transforms, "random_crop", lambda *a: draws.append(original(*a)) or draws[-1])
    kept = training_crop(whole, CropRule((16, 16), flip=False), np.random.default_rng(0), RareClass(9, 0, tries=4))
    assert len(draws) == 1 + 4
    assert kept is draws[-1]


def test_half_of_the_crops_are_mirrored():
    whole, rule = sample(), CropRule((24, 32))
    mirrored = [
        (training_crop(whole, rule, np.random.default_rng(s)).image == whole.image[:, ::-1]).all() for s in range(400)
    ]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.1)
