"""Entropy losses on unlabelled images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def entropy(logits: Tensor, kind: Literal["shannon", "double_softmax"] = "shannon") -> Tensor:
    """Compute the entropy of a prediction in nats, averaged over pixels.

    "double_softmax" is what the released code of CCM (Li et al. 2020) and of BiCL computes under this name: the
    log-softmax of the *probabilities* p in place of log p. It equals logsumexp(p) - sum p^2, the maximum-squares loss
    (Chen et al. 2019) up to a nearly constant term, and lies between 2.03 and 2.94 for 19 classes.

    Args:
        logits: [B, K, h, w], any float type; computed in float32.
        kind: "shannon" or "double_softmax".

    Returns:
        float32, 0-dim.
    """
    logs = logits.float().log_softmax(1)
    probability = logs.exp()
    if kind == "double_softmax":
        logs = probability - torch.logsumexp(probability, 1, keepdim=True)
    return -(probability * logs).sum(1).mean()
