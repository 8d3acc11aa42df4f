"""Stored labels lie on the pixels they were made for."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from test_datamodule import make, settings  # noqa: F401

from uda_seg.data.storage.label_store import LabelDraft, LabelStore
from uda_seg.errors import UserError


def finished(folder, labels, version=0):
    store = LabelStore(folder, len(labels), labels.shape[1:])
    draft = LabelDraft(store, version, len(labels), "network")
    draft.begin()
    draft.write("selected", 0, labels)
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
    LabelDraft(store, 2, 1, "first").begin()
    LabelDraft(store, 2, 1, "first").write("done", 1, np.ones(1))
    again = LabelDraft(store, 2, 1, "first")
    again.begin()
    assert again.plane("done").tolist() == [0, 1, 0, 0]
    other = LabelDraft(store, 2, 1, "second")
    other.begin()
    assert other.plane("done").tolist() == [0, 0, 0, 0]
    assert not store.has(2)
    other.finish()
    assert store.has(2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_002.crc32", "round_002.npy"]


@pytest.mark.parametrize(("size", "batches"), [(2, [[0, 1], [2, 3], [4]]), (4, [[0, 1, 2, 3], [4]])])
def test_a_draft_in_other_batches_is_begun_anew(size, batches, tmp_path):
    """`done` counts batches: by fours there are as many as by threes, of other images."""
    store = LabelStore(tmp_path, 5, (2, 3))
    LabelDraft(store, 0, 3, "network").begin()
    LabelDraft(store, 0, 3, "network").write("done", 0, np.ones(1))
    other = LabelDraft(store, 0, size, "network")
    other.begin()
    assert other.batches == batches
    assert other.plane("done").tolist() == [0] * len(batches)


def test_a_draft_for_other_images_is_begun_anew(tmp_path):
    LabelDraft(LabelStore(tmp_path, 4, (2, 3)), 0, 2, "network").begin()
    LabelDraft(LabelStore(tmp_path, 4, (2, 3)), 0, 2, "network").write("done", 0, np.ones(1))
    wider = LabelDraft(LabelStore(tmp_path, 4, (2, 5)), 0, 2, "network")
    wider.begin()
    assert wider.plane("label").shape == (4, 2, 5)
    assert wider.plane("done").tolist() == [0, 0]


def test_later_rounds_are_forgotten(tmp_path):
    labels = np.zeros((1, 2, 2), np.uint8)
    for version in range(3):
        store = finished(tmp_path, labels, version)
    LabelDraft(store, 3, 1, "network").begin()
    store.forget_from(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round_000.crc32", "round_000.npy"]


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    draft = LabelDraft(LabelStore(tmp_path, 3, (2, 2)), 0, 1, "network")
    draft.begin()
    path = tmp_path / "round_000" / "label.npy"
    real = Path.open

    def full(self, mode="r", *given):
        if self == path and mode != "rb":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, mode, *given)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=r"cannot write pseudo-labels into .*No space left on device; free some space"):
        draft.write("label", 0, np.ones((1, 2, 2)))


def test_a_file_of_other_images_is_named(tmp_path):
    finished(tmp_path, np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(UserError, match=r"round_000\.npy holds labels of other target images"):
        LabelStore(tmp_path, 3, (2, 2)).read(0, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64), (1, 1))
    with pytest.raises(UserError, match=r"other target images: start the run again with overwrite=true"):
        LabelStore(tmp_path, 3, (2, 2)).has(0)


@pytest.mark.parametrize("content", ["", "nothing", "half"])
def test_a_broken_file_is_as_good_as_none(content, tmp_path):
    store = finished(tmp_path, np.zeros((2, 2, 2), np.uint8))
    assert store.has(0)
    assert not store.has(1)
    whole = store.path(0).read_bytes()
    store.path(1).write_bytes(whole[:-3] if content == "half" else content.encode())
    assert not store.has(1)
    with pytest.raises(UserError, match=r"cannot read the pseudo-labels .*round_001\.npy: .*; resume=last computes"):
        store.read(1, torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64), (1, 1))
    finished(tmp_path, np.ones((2, 2, 2), np.uint8), 1)
    assert store.has(1)


def test_labels_are_taken_from_another_run(tmp_path):
    labels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    finished(tmp_path / "theirs", labels, 3)
    mine = LabelStore(tmp_path / "mine", 2, (2, 2))
    mine.take(tmp_path / "theirs", 2)
    assert not (tmp_path / "mine").exists()
    mine.take(tmp_path / "theirs", 3)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["round_003.crc32", "round_003.npy"]
    assert (np.load(mine.path(3)) == labels).all()
