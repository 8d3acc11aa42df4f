from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor

from uda_seg.data import stream
from uda_seg.data.batch import DomainBatch, Sample, collate
from uda_seg.errors import UserError


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    labels = rng.integers(0, 19, (2, 4, 6), dtype=np.uint8)
    return collate([Sample(i, label) for i, label in zip(images, labels, strict=True)], [7, 3])


def test_collate_stacks_channels_first(batch):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    assert batch.image.is_contiguous()
    np.testing.assert_array_equal(batch.image.numpy(), np.moveaxis(images, -1, 1))
    assert batch.label.dtype == batch.image.dtype == torch.uint8
    assert batch.index.tolist() == [7, 3]
    assert batch.index.dtype == torch.int64
    assert batch.valid.dtype == torch.bool
    assert batch.valid.all()


def test_what_differs_in_size_shares_no_batch():
    image, label = np.zeros((1, 2, 3), np.uint8), np.zeros((2, 4), np.uint8)
    with pytest.raises(UserError, match=r"images of the sizes \[\(1, 2\), \(2, 2\)\] cannot share a batch"):
        collate([Sample(image), Sample(np.zeros((2, 2, 3), np.uint8))], [0, 1])
    with pytest.raises(UserError, match=r"labels of the sizes \[\(1, 2\), \(2, 4\)\] cannot share a batch: set"):
        collate([Sample(image, label), Sample(image, label[:1, :2])], [0, 1])


def test_collate_without_labels_and_with_a_mask():
    valid = np.array([[0, 1]], np.uint8)
    batch = collate([Sample(np.zeros((1, 2, 3), np.uint8), valid=valid)], [0])
    assert batch.label is None
    assert batch.valid.tolist() == [[[False, True]]]


def test_images_of_two_sizes_are_refused():
    with pytest.raises(UserError, match=r"\(2, 2\), \(2, 3\).*data.val_batch=1"):
        collate([Sample(np.zeros((2, w, 3), np.uint8)) for w in (3, 2)], [0, 1])


def test_lightning_moves_every_tensor_through_to(batch):
    moved = move_data_to_device({"source": batch}, torch.device("meta"))["source"]
    assert isinstance(moved, DomainBatch)
    assert {t.device.type for t in (moved.image, moved.label, moved.index, moved.valid)} == {"meta"}
    assert moved.depth is None
    assert batch.image.device.type == "cpu"


def test_pin_memory_pins_every_tensor_there_is(batch, monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    assert isinstance(batch.pin_memory(), DomainBatch)
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert {id(t) for t in pinned} == {id(t) for t in tensors}
    assert len(tensors) >= 4


def test_slabs_keep_copies_that_share_nothing(monkeypatch):
    monkeypatch.setattr(stream, "SLAB_BYTES", 256)
    rng, slabs = np.random.default_rng(0), stream.Slabs()
    arrays = [
        rng.integers(0, 256, (5, 7, 3)).astype(np.uint8),
        rng.random((3, 11)).astype(np.float32),
        rng.integers(0, 256, (40, 10)).astype(np.uint8),  # larger than a slab
        np.zeros((0, 4), np.uint8),
        rng.random(9),
        rng.integers(0, 9, (6, 6), dtype=np.int64)[::2, ::-1],
    ]
    copies = [slabs.keep(array) for array in arrays]
    for array, copy in zip(arrays, copies, strict=True):
        assert copy.dtype == array.dtype
        assert np.array_equal(copy, array)
        assert copy.flags.aligned
        assert not np.shares_memory(array, copy)
    for number, copy in enumerate(copies):
        copy[...] = number
    assert all((copy == number).all() for number, copy in enumerate(copies))
