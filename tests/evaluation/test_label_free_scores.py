"""Label-free scores of a sample of images: independent of its parts, and of runs that are compared by their files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uda_seg.errors import Damaged
from uda_seg.evaluation.evaluator import confusion_matrix
from uda_seg.evaluation.label_free import (
    PIXELS,
    SCORES,
    Candidate,
    Predicted,
    class_shares,
    ensemble_agreement,
    read_predictions,
    write_predictions,
)

CLASSES = 4


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(3 * torch.randn(CLASSES, 12, 20, generator=generator)).softmax(0) for _ in range(count)]


def entered(places: list[int], count: int = 3) -> Predicted:
    predicted = Predicted.empty(count, CLASSES)
    for place in places:
        p = images(count)[place]
        predicted.add(place, p, 1000 + place, confusion_matrix(p.argmax(0).roll(1), p.argmax(0), CLASSES))
    return predicted


def test_scores_do_not_depend_on_the_ranks_that_predicted():
    reference = class_shares(np.array([5.0, 3, 2, 0]))
    whole = entered([0, 1, 2])
    summed = [a + b for a, b in zip(vars(entered([2])).values(), vars(entered([1, 0])).values(), strict=True)]
    assert Predicted(*summed).scores(SCORES, reference) == whole.scores(SCORES, reference)
    assert whole.scores(["snd"], reference).keys() == {"snd"}


def test_scores_are_those_of_all_pixels():
    p = torch.stack(images(3)).double()
    reference = class_shares(np.array([5.0, 3, 2, 0]))
    assert reference.sum() == pytest.approx(1)
    assert 0 < reference[3] < 1e-5
    found = entered([0, 1, 2]).scores(SCORES, reference)
    mean = p.mean((0, 2, 3)).numpy()
    expected = -(mean * np.log(mean / reference)).sum() + (p * p.log()).sum(1).mean().item()
    assert found["infomax"] == pytest.approx(expected, rel=1e-5)  # means of an image are float32
    clean, masked = p.argmax(1), torch.stack([label.roll(1) for label in p.argmax(1)])
    ious = [((clean == c) & (masked == c)).sum() / ((clean == c) | (masked == c)).sum() for c in range(CLASSES)]
    assert found["masked_agreement"] == pytest.approx(float(sum(ious)) / CLASSES, rel=1e-6)


def test_runs_are_scored_by_their_agreement_with_the_mean_of_all():
    p = torch.tensor([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.1, 0.9, 0], [0.2, 0.8, 0]])
    q, r = p.clone(), p[[2, 1, 2, 2]]  # the third errs on the first pixel
    runs = {name: Candidate(x[None], (7,), ("a", "b", "c"), 1) for name, x in (("p", p), ("q", q), ("r", r))}
    found = ensemble_agreement(runs)
    assert found["p"] == found["q"] == 1.0
    assert found["r"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ensemble_agreement({"p": runs["p"]}) == {}
    other = Candidate(p[None], (8,), ("a", "b", "c"), 1)
    with pytest.raises(ValueError, match="not run on the same images"):
        ensemble_agreement(runs | {"s": other})


def test_predictions_are_kept_to_a_255th(tmp_path):
    assert read_predictions(tmp_path) is None
    write_predictions(tmp_path, entered([0, 1, 2]), ("road", "小道", "<b>", "$x$"), 40)
    kept = read_predictions(tmp_path)
    assert kept is not None
    assert (kept.images, kept.step) == ((1000, 1001, 1002), 40)
    assert kept.classes == ("road", "小道", "<b>", "$x$")
    assert kept.probability.shape == (3, PIXELS, CLASSES)
    assert (kept.probability - entered([0, 1, 2]).sample).abs().max() <= 0.5 / 255 + 1e-6
    assert (tmp_path / "label_free.npz").stat().st_size < 3 * PIXELS * CLASSES + 2000


@pytest.mark.parametrize("content", [b"", b"PK damaged", None])
def test_damaged_predictions_are_named(content, tmp_path):
    if content is None:
        np.savez(tmp_path / "label_free.npz", probability=np.zeros(3), images=np.zeros(1), classes=["a"], step=1)
    else:
        (tmp_path / "label_free.npz").write_bytes(content)
    with pytest.raises(Damaged, match=r"label_free\.npz"):
        read_predictions(tmp_path)
