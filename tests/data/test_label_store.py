"""Stored labels lie on the pixels they were made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_datamodule import make, settings  # noqa: F401

from uda_seg.data.label_store import LabelDraft, LabelStore
from uda_seg.errors import UserError


def finished(folder, labels, version=0):
    store = LabelStore(folder, len(labels), labels.shape[1:])
    draft = LabelDraft(store, version, 1, "network")
    draft.begin()
    draft.plane("selected")[:] = labels
    draft.finish()
    return store


def test_labels_follow_the_crop_and_flip_of_training(settings, tmp_path):  # noqa: F811
    """The red channel of the test images is their label: what is stored from whole images is found under every crop."""
    data = make(settings)
    count, height, width = data.target_shape
    assert (count, height, width) == (6, 32, 48)
    whole = np.full((count, height, width), 255, np.uint8)
    for batch in data.target_images([[0, 1], [2, 3, 4], [5]]):
        assert batch.label is None
        whole[batch.index] = batch.image[:, 0]
    store = finished(tmp_path / "rounds", whole)
    mirrored = set()
    for batch in data.train_dataloader():
        target = batch["target"]
        assert torch.equal(store.read(0, target.index, target.window, (16, 24)), target.image[:, 0])
        mirrored |= set(target.window[:, 2].tolist())
    assert mirrored == {0, 1}


def test_beyond_an_image_lies_nothing(tmp_path):
    store = finished(tmp_path, np.arange(12, dtype=np.uint8).reshape(1, 3, 4))
    crop = store.read(0, torch.tensor([0]), torch.tensor([[1, 2, 1]]), (3, 4))[0]
    assert crop.tolist() == [[255, 255, 7, 6], [255, 255, 11, 10], [255] * 4]


def test_a_draft_is_continued_for_the_same_network_only(tmp_path):
    store = LabelStore(tmp_path, 4, (2, 3))
    LabelDraft(store, 2, 4, "first").begin()
    LabelDraft(store, 2, 4, "first").plane("done")[1] = 1
    again = LabelDraft(store, 2, 4, "first")
    again.begin()
    assert again.plane("done").tolist() == [0, 1, 0, 0]
    other = LabelDraft(store, 2, 4, "second")
    other.begin()
    assert other.plane("done").tolist() == [0, 0, 0, 0]
    assert not store.has(2)
    other.finish()
    assert store.has(2)
    assert [p.name for p in tmp_path.iterdir()] == ["round_002.npy"]


def test_later_rounds_are_forgotten(tmp_path):
    labels = np.zeros((1, 2, 2), np.uint8)
    for version in range(3):
        store = finished(tmp_path, labels, version)
    LabelDraft(store, 3, 1, "network").begin()
    store.forget_from(1)
    assert [p.name for p in tmp_path.iterdir()] == ["round_000.npy"]


def test_a_broken_or_foreign_file_is_named(tmp_path):
    store = finished(tmp_path, np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"round_000\.npy holds labels of other target images"):
        LabelStore(tmp_path, 3, (2, 2)).read(0, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64), (1, 1))
    store.path(1).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot read the pseudo-labels .*round_001\.npy"):
        store.read(1, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64), (1, 1))
