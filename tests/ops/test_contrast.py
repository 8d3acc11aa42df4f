"""Contrastive terms against loops over pixels in Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from uda_seg.ops.contrast import (
    draw_equal_negatives,
    draw_of_class,
    draw_of_others,
    group_by_class,
    info_nce,
    prototype_contrast,
    similarity,
    take,
    transfer_labels,
)
from uda_seg.ops.prototypes import class_sums

K = 5


def random_labels(g, *shape, classes=K):
    label = torch.randint(0, classes + 1, shape, generator=g)
    return torch.where(label == classes, 255, label).to(torch.uint8)


def cosine(a, b):
    a, b = a.tolist(), b.tolist()
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


def contrast_loop(features, label, other, other_label, temperature, absent):
    """One pair: pixels of `features` against the prototypes of `other`, over classes both have."""
    prototypes = {c: other[:, other_label == c].mean(1) for c in set(other_label.flatten().tolist()) - {255}}
    shared = set(prototypes) & set(label.flatten().tolist())
    losses = []
    for y in range(label.shape[0]):
        for x in range(label.shape[1]):
            c = int(label[y, x])
            if c in shared:
                scores = {k: cosine(features[:, y, x], p) / temperature for k, p in prototypes.items()}
                if absent == "opposite":
                    scores |= {k: -1 / temperature for k in range(K) if k not in prototypes}
                losses.append(math.log(sum(math.exp(v) for v in scores.values())) - scores[c])
    return sum(losses) / len(losses) if losses else 0.0


def contrast(features, label, other, other_label, temperature=0.1, absent="masked"):
    prototypes, mine = class_sums(other, other_label, K), class_sums(features, label, K)
    logits = similarity(features, prototypes.mean, prototypes.present, temperature, absent)
    return prototype_contrast(logits, label, prototypes.present & mine.present)


@pytest.mark.parametrize("absent", ["masked", "opposite"])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_prototype_contrast_pair_by_pair(absent, temperature):
    g = torch.Generator().manual_seed(1)
    source, target = torch.randn(3, 6, 4, 5, generator=g), torch.randn(3, 6, 4, 5, generator=g)
    y_s, y_t = random_labels(g, 3, 4, 5), random_labels(g, 3, 4, 5)
    y_s[1][y_s[1] < 3] = 4  # classes that the other image alone has
    loss = contrast(target, y_t, source, y_s, temperature, absent)
    for b in range(3):
        expected = contrast_loop(target[b], y_t[b], source[b], y_s[b], temperature, absent)
        assert loss[b].item() == pytest.approx(expected, rel=1e-4)


def test_pairs_without_a_common_class_give_zero_and_no_nan():
    features = torch.randn(2, 6, 4, 4, requires_grad=True)
    other = torch.randn(2, 6, 4, 4, requires_grad=True)
    y = torch.zeros(2, 4, 4, dtype=torch.uint8)
    theirs = torch.stack([torch.full((4, 4), 3), torch.full((4, 4), 255)]).to(torch.uint8)
    loss = contrast(features, y, other, theirs)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    for tensor in (features, other):
        assert (tensor.grad == 0).all()


def test_transferred_labels_are_those_of_the_nearest_prototype():
    g = torch.Generator().manual_seed(2)
    source, target = torch.randn(1, 4, 6, 6, generator=g), torch.randn(1, 4, 6, 6, generator=g)
    y_s = random_labels(g, 1, 6, 6)
    y_s[y_s == 2] = 255
    sums = class_sums(source, y_s, K)
    logits = similarity(target, sums.mean, sums.present, 0.1)
    label = transfer_labels(logits, 0.8)
    labelled = 0
    for y in range(6):
        for x in range(6):
            scores = {c: math.exp(cosine(target[0, :, y, x], sums.mean[0, c]) / 0.1) for c in (0, 1, 3, 4)}
            best = max(scores, key=scores.get)
            sure = scores[best] / sum(scores.values()) > 0.8
            assert label[0, y, x].item() == (best if sure else 255)
            labelled += sure
    assert 0 < labelled < 36
    assert (transfer_labels(logits, 1.0) == 255).all()
    for absent in ("masked", "opposite", "farthest"):
        nothing = similarity(target, sums.mean, torch.zeros(1, K, dtype=torch.bool), 0.1, absent)
        assert (transfer_labels(nothing, 0.8) == 255).all()


def transfer_loop(features, prototypes, temperature, threshold, absent):
    """One image; `prototypes` by class, those it has."""
    out = np.full(features.shape[1:], 255)
    for y, x in np.ndindex(*out.shape):
        pixel = features[:, y, x]
        cosines = {c: pixel @ p / np.linalg.norm(pixel) / np.linalg.norm(p) for c, p in prototypes.items()}
        best = max(cosines, key=cosines.get)
        filled = {"masked": -np.inf, "opposite": -1.0, "farthest": min(cosines.values())}[absent]
        odds = [math.exp(cosines.get(c, filled) / temperature) for c in range(K)]
        if math.exp(cosines[best] / temperature) / sum(odds) > threshold:
            out[y, x] = best
    return out


@pytest.mark.parametrize("absent", ["masked", "opposite", "farthest"])
@pytest.mark.parametrize("there", [[3], [1, 4], [0, 2, 3], list(range(K))])
def test_what_absent_classes_count_in_the_transfer(there, absent):
    """Of positive features, as fused maps are."""
    g = torch.Generator().manual_seed(8)
    source, target = torch.eye(K).unsqueeze(0) + 0.2, torch.randn(1, K, 9, 9, generator=g).relu() + 0.2
    present = torch.tensor([[c in there for c in range(K)]])
    label = transfer_labels(similarity(target, source * present.unsqueeze(2), present, 0.1, absent), 0.8)[0].numpy()
    prototypes = {c: source[0, c].numpy().astype(float) for c in there}
    expected = transfer_loop(target[0].numpy().astype(float), prototypes, 0.1, 0.8, absent)
    assert (label == expected).all()
    if len(there) == 1:  # without a rival nothing says that a pixel is of the class
        assert (label == 255).all() == (absent == "farthest")
    else:
        assert 0 < (label != 255).mean() < 1


def test_queries_are_of_their_class_and_distinct_while_there_are_enough():
    g = torch.Generator().manual_seed(3)
    label = random_labels(g, 2, 6, 7)
    label[0][label[0] == 1] = 0  # no pixel of class 1
    drawn = draw_of_class(group_by_class(label, K, g), 12)
    for b in range(2):
        flat = label[b].flatten()
        for c in range(K):
            positions, there = drawn[b, c], int((flat == c).sum())
            if there:
                assert (flat[positions] == c).all()
                assert len(set(positions.tolist())) == min(12, there)


def test_every_pixel_of_a_class_is_drawn_equally_often():
    label = torch.tensor([[[0, 0, 0, 1], [1, 2, 2, 255]]], dtype=torch.uint8)
    counts = torch.zeros(8)
    for seed in range(300):
        drawn = draw_of_class(group_by_class(label, 3, torch.Generator().manual_seed(seed)), 1)
        counts.index_add_(0, drawn.flatten(), torch.ones(3))
    assert counts[7] == 0
    torch.testing.assert_close(counts[:3], torch.full((3,), 100.0), rtol=0, atol=30)
    torch.testing.assert_close(counts[3:7], torch.full((4,), 150.0), rtol=0, atol=35)


def test_negatives_never_contain_the_class_and_cover_all_others():
    g = torch.Generator().manual_seed(4)
    label = random_labels(g, 2, 5, 6)
    label[1] = 3  # no other class at all
    label[1, 0, 0] = 255
    pixels = group_by_class(label, K, g)
    drawn = draw_of_others(pixels, 2000, g)
    for c in range(K):
        flat = label[0].flatten()
        others = set(torch.nonzero((flat != c) & (flat != 255)).flatten().tolist())
        assert set(drawn[0, c].tolist()) == others
    assert (pixels.count.sum(1) - pixels.count[:, 3]).tolist()[1] == 0
    for c in (0, 1, 2, 4):
        assert (label[1].flatten()[drawn[1, c]] == 3).all()


def test_take_gathers_features():
    features = torch.randn(2, 3, 20)
    position = torch.randint(0, 20, (2, K, 6))
    taken = take(features, position)
    for b, c, n in ((0, 0, 0), (1, 4, 5), (0, 2, 3)):
        torch.testing.assert_close(taken[b, c, n], features[b, :, int(position[b, c, n])])


def test_negatives_come_in_equal_numbers_from_both_images():
    g = torch.Generator().manual_seed(6)
    source, target = random_labels(g, 3, 4, 5), random_labels(g, 3, 4, 4)
    target[1] = 255  # nothing to draw from
    source[2] = 0
    source[2, 0, 0] = 255
    sides = group_by_class(source, K, g), group_by_class(target, K, g)
    position, there_are, one_sided = draw_equal_negatives(*sides, 8, g)
    for b in range(3):
        label = torch.cat([source[b].flatten(), target[b].flatten()])
        for c in range(K):
            first, second = (any(0 <= v < K and v != c for v in y[b].flatten().tolist()) for y in (source, target))
            assert there_are[b, c] == (first or second)
            assert one_sided[b, c] == (first != second)
            if first or second:
                drawn = position[b, c]
                assert ((label[drawn] != c) & (label[drawn] != 255)).all()
                assert int((drawn < 20).sum()) == (8 * first if first != second else 4)
    alone, there_are, _ = draw_equal_negatives(sides[0], None, 8, g)
    assert (alone < 20).all()
    assert there_are[2].tolist() == [False, True, True, True, True]


def test_info_nce_term_by_term():
    g = torch.Generator().manual_seed(5)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, 3, generator=g), dim=-1)

    query, positive, negative = unit(2, K, 4), unit(K), unit(2, K, 7)
    usable = torch.ones(2, K, dtype=torch.bool)
    usable[1, 2] = False
    loss = info_nce(query, positive, negative, usable, 0.2)
    for b in range(2):
        for c in range(K):
            terms = []
            for n in range(4):
                pull = math.exp(cosine(query[b, c, n], positive[c]) / 0.2)
                push = sum(math.exp(cosine(query[b, c, n], negative[b, c, m]) / 0.2) for m in range(7))
                terms.append(-math.log(pull / (pull + push)))
            expected = sum(terms) / 4 if usable[b, c] else 0.0
            assert loss[b, c].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
