"""Every method trains in bf16-mixed, with what needs more than eight bits in float32."""

from __future__ import annotations

import pytest
import torch
from test_all import METHODS, batches_for
from test_no_sync import built, watched
from test_steps import fit
from torch.utils._python_dispatch import TorchDispatchMode

from uda_seg.models.small import ResidualEncoder

# Of softmax, cross-entropy and contrast, and of the sums that prototypes are made of.
CAREFUL = {
    *("_softmax", "_log_softmax", "nll_loss_forward", "nll_loss2d_forward", "logsumexp", "exp", "log", "log1p"),
    *("index_add", "index_add_", "scatter_add", "scatter_add_", "cumsum", "linalg_vector_norm"),
}


class Halved(TorchDispatchMode):
    """Names of the operators that are given bfloat16; on a CPU autocast makes hardly anything float32 by itself."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 for value in args):
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def noted(losses, found):
    """The method's losses, each term's value kept by name."""

    def walk(batch):
        for item in losses(batch):
            found.update({term.name: term.value.detach() for term in (item if isinstance(item, tuple) else (item,))})
            yield item

    return walk


@pytest.mark.parametrize("method", METHODS)
def test_method_trains_in_mixed_precision(method, make_plan, make_batch, monkeypatch):
    monkeypatch.setattr(ResidualEncoder, "pretrained", True)  # so that the feature distance is a part of the step
    module, values, halved, autocast = built(method, "daformer_small", make_plan), {}, Halved(), []
    module.losses = noted(module.losses, values)
    module.backward = lambda loss: (autocast.append(torch.is_autocast_enabled("cpu")), loss.backward())
    before = torch.cat([p.detach().flatten() for p in module.segmentor.parameters()])
    watched(module, lambda module, batch: halved)
    fit(module, batches_for(module, make_batch), precision="bf16-mixed")
    after = torch.cat([p.detach().flatten() for p in module.segmentor.parameters()])
    assert not torch.equal(before, after)
    assert torch.isfinite(after).all()
    assert values
    assert all(torch.isfinite(value) for value in values.values())
    state = [value for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]
    assert {value.dtype for value in (*values.values(), *state)} == {torch.float32}
    assert {"convolution", "convolution_backward"} <= halved.names
    assert not halved.names & CAREFUL
    assert autocast
    assert not any(autocast)  # else gradients of what is computed in float32 would not be
