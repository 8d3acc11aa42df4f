"""Scores of a network that read no label of the images it is scored on; of all, higher is better.

They choose among checkpoints and runs where the target has no labels. None is a measure of quality: each rewards
something that good networks have, and some bad ones too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pixel_entropy(probability: Tensor) -> Tensor:
    """Compute the Shannon entropy in nats over the last dimension: [..., K] -> [...]; 0 log 0 = 0."""
    entropy: Tensor = torch.special.entr(probability).sum(-1)
    return entropy


def information_maximization(mean: Tensor, entropy: Tensor, reference: Tensor) -> Tensor:
    """Compute -KL(mean prediction || reference) - mean entropy: confident pixels, and classes in familiar shares.

    With equal shares as the reference this is, up to the constant log K, the mutual information of image and prediction
    (Krause et al. 2010; Shi and Sha 2012): the entropy of the mean prediction minus the mean entropy. That rewards
    equally frequent classes, which streets do not have; so the reference are the shares on the source (ours).

    Args:
        mean: [K], the mean over pixels of the softmax.
        entropy: 0-dim, the mean over pixels of its entropy in nats.
        reference: [K], positive, summing to 1.

    Returns:
        0-dim, at most 0.
    """
    divergence: Tensor = (torch.special.xlogy(mean, mean) - torch.special.xlogy(mean, reference)).sum()
    return -divergence - entropy


def neighbourhood_density(probability: Tensor, temperature: float = 0.05, rows: int = 512) -> Tensor:
    """Compute the soft neighbourhood density: the mean entropy of pixels' distributions over their neighbours.

    With z the softmax at unit length, pixel i has P_ij = softmax_j(z_i z_j / T) over all other pixels j (Saito et al.,
    ICCV 2021, eq. 1-3). Many close neighbours make the distribution flat and its entropy high.

    Args:
        probability: [N, K], softmax vectors of N >= 2 pixels.
        temperature: T > 0 (paper: 0.05).
        rows: pixels that are compared with all others at a time, which bounds the memory.

    Returns:
        0-dim, in nats, at most log(N - 1): only scores of the same number of pixels can be compared.
    """
    unit = torch.nn.functional.normalize(probability, dim=1)
    total = unit.new_zeros(())
    for first in range(0, len(unit), rows):
        similarity = unit[first : first + rows] @ unit.T / temperature
        similarity.diagonal(first).fill_(-torch.inf)
        logs = similarity.log_softmax(1)
        total -= (logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum()
    return total / len(unit)


def ensemble_labels(probabilities: Sequence[Tensor]) -> Tensor:
    """Label pixels by the mean softmax of several networks, each [..., K] -> int64 [...]; ties go to the first class.

    The reference of EnsV (Hu et al., NeurIPS 2024), by agreement with which each of the networks is scored.
    """
    return torch.stack([p.double() for p in probabilities]).mean(0).argmax(-1)
