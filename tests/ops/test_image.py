"""Stored images and the step's images hold the same values."""

from __future__ import annotations

import pytest
import torch

from uda_seg.ops.image import to_float, upload


def test_to_float_spans_zero_to_one():
    image = torch.arange(256, dtype=torch.uint8)
    out = to_float(image)
    assert out.dtype == torch.float32
    assert out.tolist() == pytest.approx([i / 255 for i in range(256)], abs=1e-7)
    assert torch.equal((out * 255).round().to(torch.uint8), image)


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_upload_to_the_host_keeps_the_values(device):
    values = torch.tensor([1.5, -2.0])
    assert torch.equal(upload(values, device), values)
