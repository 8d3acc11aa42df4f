"""The language head's start from a trained plain head."""

from __future__ import annotations

import pytest
import torch

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.language import LanguageHead


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
