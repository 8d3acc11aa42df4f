"""Batches of images: as large as memory allows, and never at the cost of an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.models.inference import Inference
from uda_seg.prediction import batches
from uda_seg.prediction.batches import Batches, is_full
from uda_seg.runs.trained import TrainedSegmentor


class Small:
    """A network with memory for three images of 32 pixels, one of 96."""

    device = torch.device("cpu")

    def __init__(self, memory: int = 96) -> None:
        self.memory, self.seen = memory, []

    def batch_logits(self, images):
        self.seen.append(len(images))
        if sum(image.shape[0] * image.shape[1] for image in images) > self.memory:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def images(count: int, height: int = 4) -> list[np.ndarray]:
    return [np.full((height, 8, 3), i, np.uint8) for i in range(count)]


def test_a_full_memory_halves_the_batch_and_loses_no_image():
    model = Small()
    work = Batches(model, 8)
    found = list(work.logits(images(8)))
    assert [int(logits[0, 0, 0]) for logits in found] == list(range(8))
    assert model.seen == [8, 4, 2, 2, 2, 2]
    assert work.room(images(1)[0]) == 2


def test_an_image_too_large_alone_is_named_with_its_cure():
    found = list(Batches(Small(), 2).logits(images(2, height=16)))
    assert all(isinstance(error, UserError) for error in found)
    assert "memory is full with one image of 8 x 16 pixels: predict it in windows, evaluator=slide" in str(found[0])


def test_other_errors_are_not_taken_for_a_full_memory():
    assert is_full(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_full(RuntimeError("size mismatch"))


def test_on_a_gpu_the_batch_is_what_its_free_memory_holds(monkeypatch):
    """Without one here: its memory counters are made up, and one image of 32 pixels takes 320 bytes."""
    model = Small(10**6)
    model.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1320)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    work = Batches(model)
    assert work.room(images(1)[0]) == 1  # the first alone
    list(work.logits(images(1)))
    assert work.room(images(1)[0]) == int(batches.SHARE * 4000 / 320)
    assert work.room(images(1, height=8)[0]) == int(batches.SHARE * 4000 / 640)


@pytest.mark.parametrize("infer", [Inference(), Inference(window=(32, 32), stride=(16, 16), flip=True)])
def test_a_batch_predicts_what_its_images_do_alone(make_segmentor, infer):
    model = TrainedSegmentor(make_segmentor().eval(), CITYSCAPES, None, infer)
    three = [np.random.default_rng(i).integers(0, 256, (40, 56, 3), dtype=np.uint8) for i in range(3)]
    together = model.batch_logits(three)
    for image, logits in zip(three, together, strict=True):
        # Sums of a few hundred float32 products in another order.
        torch.testing.assert_close(logits, model.logits(image), rtol=1e-4, atol=1e-4)
