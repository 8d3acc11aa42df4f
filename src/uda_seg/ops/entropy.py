"""How undecided a prediction is, as losses on unlabelled images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def entropy(logits: Tensor, kind: Literal["shannon", "double_softmax"] = "shannon") -> Tensor:
    """Mean over pixels of the prediction's entropy, in nats.

    "double_softmax" is what the released code of CCM (Li et al. 2020), and of BiCL after it, computes under this name:
    the log-softmax of the *probabilities* p takes the place of log p. Hence logsumexp(p) - sum p^2: close to the
    maximum-squares loss (Chen et al. 2019) up to a constant; between 2.03 and 2.94 for 19 classes.

    Args:
        logits: [B, K, h, w], any float type; computed in float32.
        kind: which of the two.

    Returns:
        float32, 0-dim.
    """
    logs = logits.float().log_softmax(1)
    probability = logs.exp()
    if kind == "double_softmax":
        logs = probability - torch.logsumexp(probability, 1, keepdim=True)
    return -(probability * logs).sum(1).mean()
