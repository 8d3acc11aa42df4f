"""Per-pixel classes of mask classification (MaskFormer, Cheng et al. 2021, section 3.4)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def log_mixture(classes: Tensor, masks: Tensor) -> Tensor:
    """Compute log sum_q p_qk sigmoid(m_q), the logarithm of the queries' votes for every class at every pixel.

    As logits their softmax is the share of each class in the votes, so that cross-entropy is that of a probability and
    has gradients also where all masks are far from a pixel. (The votes themselves are in [0, Q]; as logits they could
    hardly express confidence.) A query's share of "no object" is a vote for no class.

    Args:
        classes: logits [B, Q, K + 1] of the queries, the last class being "no object".
        masks: logits m [B, Q, h, w].

    Returns:
        float32 [B, K, h, w].
    """
    share = classes.float().softmax(-1)[..., :-1]
    inside = F.logsigmoid(masks.float())
    # Relative to a pixel's nearest mask, no exponential vanishes; the sum is the same for any constant.
    nearest = inside.detach().amax(1, keepdim=True)
    with _full_precision(masks.device):
        votes = torch.einsum("bqk,bqhw->bkhw", share, (inside - nearest).exp())
    return votes.clamp(min=torch.finfo(votes.dtype).tiny).log() + nearest


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch off automatic mixed precision, which would round the factors of a product."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
