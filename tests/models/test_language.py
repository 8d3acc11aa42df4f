"""The language head's start from a trained plain head."""

from __future__ import annotations

import pytest
import torch

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.language import LanguageHead, SpatialBlock


@pytest.mark.parametrize("correlation", [True, False])
def test_starts_as_a_copy_of_the_plain_head(correlation):
    torch.manual_seed(0)
    plain = DAFormerHead((4, 6), 5, width=8, dilations=(1, 3)).eval()
    head = LanguageHead((4, 6), 5, width=8, dilations=(1, 3), correlation=correlation).eval()
    stages = [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)]
    head.start_from(plain)
    torch.testing.assert_close(head(stages, text=torch.randn(5, 8)), plain(stages))
    with pytest.raises(ValueError, match="same width"):
        head.start_from(DAFormerHead((4, 6), 5, width=4, dilations=(1, 3)))


def test_the_identity_start_passes_what_differs_between_classes():
    """With k = 1 at the centre, g(relu(g(C))) = relu(C + m) + relu(2m), m = max C: written out class by class."""
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 4, 6)
    got = SpatialBlock("identity")(maps)
    for image, row, column in [(b, y, x) for b in range(2) for y in range(4) for x in range(6)]:
        pixel = maps[image, :, row, column].tolist()
        largest = max(pixel)
        expected = [max(value + largest, 0.0) + max(2 * largest, 0.0) for value in pixel]
        assert got[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-6)
    assert SpatialBlock().depthwise["depthwise"].weight.count_nonzero() == 9


def test_negative_correlations_stop_the_gradient():
    """Why texts can be centred: if every class has C < 0 at a pixel, the ReLU passes nothing of it."""
    maps = (-torch.rand(1, 5, 4, 4) - 0.1).requires_grad_()
    refined = SpatialBlock("identity")(maps)
    refined.sum().backward()
    assert not refined.any()
    assert not maps.grad.any()
