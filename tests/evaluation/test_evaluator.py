"""The evaluator against sets of pixels, torchmetrics and the official Cityscapes script on the same files."""

from __future__ import annotations

import math

import cv2
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from reference import confusion_loop, iou_sets
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.evaluation.evaluator import (
    Scores,
    SegmentationEvaluator,
    confusion_counts,
    confusion_matrix,
    iou,
    mean_scores,
)

C = 5
NAMES = tuple("abcde")
SHAPE = (2, 4, 6)
PAIR = st.tuples(
    hnp.arrays(np.int64, SHAPE, elements=st.integers(0, C - 1)),
    hnp.arrays(np.int64, SHAPE, elements=st.sampled_from([0, 1, 2, 3, 4, 255])),
)


def score(prediction: np.ndarray, label: np.ndarray, subset: tuple[int, ...] = tuple(range(C))) -> Scores:
    evaluator = SegmentationEvaluator(C, NAMES, subset)
    evaluator.update(torch.from_numpy(prediction), torch.from_numpy(label).to(torch.uint8))
    return evaluator.compute()


@settings(max_examples=50, deadline=None)
@given(PAIR, st.sets(st.integers(0, C - 1), min_size=1))
def test_scores_are_those_of_sets_of_pixels(pair, chosen):
    prediction, label = pair
    subset = tuple(sorted(chosen))
    scores = score(prediction, label, subset)
    assert scores.confusion.tolist() == confusion_loop(prediction, label, C)
    expected = [iou_sets(prediction, label, c) for c in range(C)]
    assert list(scores.per_class.values()) == pytest.approx(expected, nan_ok=True)
    present = [expected[c] for c in subset if not math.isnan(expected[c])]
    assert scores.miou == pytest.approx(np.mean(present) if present else math.nan, nan_ok=True)
    assert scores.classes == tuple(NAMES[c] for c in subset)
    counted = label != 255
    right = (prediction == label)[counted]
    assert scores.pixel_accuracy == pytest.approx(right.mean() if counted.any() else math.nan, nan_ok=True)
    recalls = [(prediction[label == c] == c).mean() for c in subset if (label == c).any()]
    assert scores.mean_accuracy == pytest.approx(np.mean(recalls) if recalls else math.nan, nan_ok=True)


def test_agrees_with_torchmetrics():
    g = torch.Generator().manual_seed(0)
    logits, label = torch.randn(4, C, 16, 16, generator=g), torch.randint(0, C, (4, 16, 16), generator=g)
    label[:, :2] = 255
    other = MulticlassJaccardIndex(C, average="none", ignore_index=255)
    ours = SegmentationEvaluator(C, NAMES, range(C))
    for i in range(0, 4, 2):
        ours.update(logits[i : i + 2], label[i : i + 2].to(torch.uint8))
        other.update(logits[i : i + 2].argmax(1), label[i : i + 2])
    assert list(ours.compute().per_class.values()) == pytest.approx(other.compute().tolist(), rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(PAIR, PAIR)
def test_two_halves_are_the_whole(first, second):
    """The state is a sum, so the reduction over ranks (dist_reduce_fx) is exact."""
    halves = [SegmentationEvaluator(C, NAMES, range(C)) for _ in range(2)]
    whole = SegmentationEvaluator(C, NAMES, range(C))
    for half, (prediction, label) in zip(halves, (first, second), strict=True):
        half.update(torch.from_numpy(prediction), torch.from_numpy(label))
        whole.update(torch.from_numpy(prediction), torch.from_numpy(label))
    assert whole.counts.dtype == torch.int64
    reduced = whole._reductions["counts"](torch.stack([half.counts for half in halves]))
    assert torch.equal(reduced, whole.counts)
    assert reduced.dtype == torch.int64
    halves[0].merge_state(halves[1])
    assert torch.equal(halves[0].compute().confusion, whole.compute().confusion)


def test_counts_per_image_are_kept_in_the_order_of_the_data_set():
    g = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, C, (5, 4, 6), generator=g)
    label = torch.randint(0, C, (5, 4, 6), generator=g).to(torch.uint8).masked_fill(prediction == 1, 255)
    evaluator = SegmentationEvaluator(C, NAMES, range(C))
    for chosen in ([4, 1], [0, 3, 2]):
        index = torch.tensor(chosen)
        evaluator.update(prediction[chosen], label[chosen], index.masked_fill(index == 3, -1))
    images = evaluator.compute().images
    assert images is not None
    assert images.ids == (0, 1, 2, 4)
    expected = [confusion_loop(prediction[i].numpy(), label[i].numpy(), C) for i in range(5)]
    assert images.confusion.tolist() == [expected[i] for i in (0, 1, 2, 4)]
    assert evaluator.compute().confusion.tolist() == np.sum(expected, 0).tolist()
    evaluator.reset()
    evaluator.update(prediction, label)
    assert evaluator.compute().images is None
    evaluator.update(prediction[:1], label[:1], torch.tensor([7]))
    images = evaluator.compute().images
    assert images is not None
    assert images.ids == (7,)


def test_counts_beyond_float32_stay_exact():
    evaluator = SegmentationEvaluator(C, NAMES, range(C))
    evaluator.counts[0] = 2**53
    for _ in range(3):
        evaluator.update(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert evaluator.compute().confusion[0, 0].item() == 2**53 + 3


def test_reset_forgets():
    evaluator = SegmentationEvaluator(C, NAMES, range(C))
    evaluator.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 9))
    evaluator.reset()
    evaluator.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2, dtype=torch.int64))
    assert evaluator.compute().miou == 1.0


def test_absent_class_is_nan_and_left_out():
    label = np.array([[[0, 0, 1, 255]]])
    scores = score(np.array([[[0, 1, 1, 4]]]), label)  # class 4 is said on an ignored pixel only
    assert [math.isnan(v) for v in scores.per_class.values()] == [False, False, True, True, True]
    assert scores.miou == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_class_outside_the_subset_still_takes_pixels():
    """As in the 16-class results of SYNTHIA: predictions are not restricted to the subset."""
    label, prediction = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 4, 1, 1]]])
    assert score(prediction, label, (0, 1)).miou == pytest.approx((1 / 2 + 1) / 2)
    assert score(prediction, label).miou == pytest.approx((1 / 2 + 1 + 0) / 3)


def synthia(prediction: np.ndarray, label: np.ndarray) -> Scores:
    evaluator = SegmentationEvaluator(19, CITYSCAPES.names, CITYSCAPES.subset("16"), CITYSCAPES.subsets)
    evaluator.update(torch.from_numpy(prediction), torch.from_numpy(label))
    return evaluator.compute()


def test_synthia_is_reported_over_16_and_13_classes_and_as_the_papers_convert_it():
    rng = np.random.default_rng(3)
    label = rng.integers(0, 19, (2, 20, 30))
    unseen = (9, 14, 16)  # terrain, truck, train: not in SYNTHIA
    said = np.where(rng.random(label.shape) < 0.5, label, rng.integers(0, 19, label.shape))
    never = np.where(np.isin(said, unseen), 2, said)
    ious = [iou_sets(never, label, c) for c in range(19)]
    scores = synthia(never, label)
    sixteen = [c for c in range(19) if c not in unseen]
    assert scores.means["19"] == pytest.approx(sum(ious) / 19)
    assert scores.miou == scores.means["16"] == pytest.approx(np.mean([ious[c] for c in sixteen]))
    assert scores.means["13"] == pytest.approx(np.mean([ious[c] for c in sixteen if c not in (3, 4, 5)]))
    assert scores.converted == pytest.approx(scores.means["16"])  # the three have an IoU of 0
    assert synthia(said, label).converted > synthia(said, label).means["16"] + 0.01  # here they have not
    assert score(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int)).converted is None


def test_targets_count_alike_and_a_class_where_it_occurs():
    first, second = np.array([[[0, 0, 1, 1]]]), np.array([[[0] * 40]])
    one, two = score(np.array([[[0, 1, 1, 1]]]), first, (0, 1)), score(second, second, (0, 1))
    mean = mean_scores([one, two])
    assert mean.miou == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert mean.per_class["a"] == pytest.approx((1 / 2 + 1) / 2)
    assert mean.per_class["b"] == pytest.approx(2 / 3)
    assert math.isnan(mean.per_class["c"])
    assert mean.pixel_accuracy == pytest.approx((3 / 4 + 1) / 2)
    assert mean.confusion[0, 0].item() == 41


@pytest.mark.parametrize("bad", [5, 19, 254])
def test_label_that_is_no_class_is_told_at_compute(bad):
    evaluator = SegmentationEvaluator(C, NAMES, range(C))
    label = torch.tensor([[[0, bad, bad, 255]]], dtype=torch.uint8)
    evaluator.update(torch.zeros(1, 1, 4, dtype=torch.int64), label)
    with pytest.raises(UserError, match=r"2 pixels have a label that is none of 5 classes"):
        evaluator.compute()


@pytest.mark.parametrize("bad", [-1, 5, 255])
def test_prediction_that_is_no_class_is_told_at_compute(bad):
    evaluator = SegmentationEvaluator(C, NAMES, range(C))
    evaluator.update(torch.tensor([[[0, bad, bad]]]), torch.tensor([[[0, 1, 255]]]))
    with pytest.raises(UserError, match="1 predicted pixels"):
        evaluator.compute()


def test_misuse_is_refused():
    evaluator = SegmentationEvaluator(C, NAMES, range(C))
    with pytest.raises(ValueError, match="does not fit label"):
        evaluator.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        SegmentationEvaluator(C, NAMES, (0, 5))


def test_functional_core():
    prediction, label = torch.tensor([0, 1, 1, 9]), torch.tensor([0, 0, 1, 255], dtype=torch.uint8)
    confusion = confusion_matrix(prediction, label, 2)
    assert confusion.tolist() == [[1, 1], [0, 1]]
    assert iou(confusion).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_ids_beyond_a_byte_do_not_wrap_into_classes(dtype):
    label = torch.tensor([0, 1, 256, 257, -1, 300, 255, 0, 1, 1], dtype=dtype)
    prediction = torch.tensor([0, 1, 0, 1, 0, 0, 300, 256, -1, 2], dtype=dtype)
    before = label.clone(), prediction.clone()
    counts = confusion_counts(prediction, label, 2)
    assert counts.tolist() == [1, 0, 0, 1, 1, 4, 3]  # the matrix; ignored pixels, bad labels, bad predictions
    assert torch.equal(before[0], label), "counting must not change its input"
    assert torch.equal(before[1], prediction), "counting must not change its input"


def test_agrees_with_the_official_cityscapes_script(tmp_path):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    raw_of = {label.trainId: label.id for label in labels.labels if 0 <= label.trainId < 19}
    to_raw = np.array([raw_of.get(c, 4) for c in range(256)], np.uint8)  # 4 = "static", not evaluated
    rng = np.random.default_rng(0)
    ours = SegmentationEvaluator(19, CITYSCAPES.names, CITYSCAPES.subset("19"))
    predictions, truths = [], []
    for i in range(2):
        label = rng.choice([*range(16), 17, 18, 255], (24, 48)).astype(np.uint8)  # no train
        prediction = np.where((rng.random(label.shape) < 0.6) & (label < 19), label, rng.integers(0, 16, label.shape))
        ours.update(torch.from_numpy(prediction[None]), torch.from_numpy(label[None]))
        stem = f"frankfurt_00000{i}_000019"
        truths.append(str(tmp_path / f"{stem}_gtFine_labelIds.png"))
        predictions.append(str(tmp_path / f"{stem}_pred_labelIds.png"))
        cv2.imwrite(truths[-1], to_raw[label])
        cv2.imwrite(predictions[-1], to_raw[prediction])
    args = official.args
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    expected = official.evaluateImgLists(predictions, truths, args)
    scores = ours.compute()
    assert scores.per_class == pytest.approx({n: expected["classScores"][n] for n in scores.per_class}, nan_ok=True)
    assert math.isnan(scores.per_class["train"])
    assert scores.miou == pytest.approx(expected["averageScoreClasses"])
