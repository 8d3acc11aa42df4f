"""No step waits for the device but those that are logged."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from test_all import METHODS, batches_for, doubled, tiny
from test_steps import fit

from device_reads import NoDeviceReads, Waits
from uda_seg.config.compose import composed
from uda_seg.models.small import ResidualEncoder
from uda_seg.runs.build import instantiate_module


@pytest.fixture(autouse=True)
def knows_photographs(monkeypatch):
    """So that the feature distance is a part of the step."""
    monkeypatch.setattr(ResidualEncoder, "pretrained", True)


def tensors_of(module, batch):
    fields = (value for domain in batch.values() for value in vars(domain).values())
    found = [value for value in fields if isinstance(value, torch.Tensor)]
    reference = getattr(module, "reference", None)
    frozen = [] if reference is None else [*reference.encoder.parameters(), *reference.encoder.buffers()]
    return [*found, *module.parameters(), *module.buffers(), *frozen]


def watched(module, within):
    """The module with its second step, the teacher's update before it, and the hooks between inside of `within`."""
    training_step, steps = module.training_step, []

    def step(batch, batch_idx):
        steps.append(batch_idx)
        if batch_idx == 0:
            return training_step(batch, batch_idx)
        with within(module, batch):
            if module.teacher is not None:
                module.teacher.update(module.segmentor)
            return training_step(batch, batch_idx)

    module.training_step = step
    return steps


def built(method, model, make_plan):
    config = tiny(composed([f"method={method}", f"model={model}", "pretrained=null"]))
    if method == "lcmsm":
        config.method["width"] = 8
    torch.manual_seed(0)
    crop = (64, 128) if "hrda" in model else (32, 64)
    return instantiate_module(config, make_plan(steps=4, log_every=100, crop=crop))


@pytest.mark.parametrize(("method", "model"), [*((m, "daformer_small") for m in METHODS), ("mic", "hrda_small")])
def test_no_step_reads_from_the_device(method, model, make_plan, make_batch):
    module = built(method, model, make_plan)
    batches = batches_for(module, make_batch)
    steps = watched(module, lambda module, batch: NoDeviceReads(tensors_of(module, batch)))
    fit(module, [doubled(batch) for batch in batches] if model == "hrda_small" else batches)
    assert steps == [0, 1]


@contextmanager
def errors(*_):
    """Within the block, CUDA refuses to let the host wait."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watched_transfer(module, within):
    """The module with every batch's way to the device inside of `within`; says of each whether all of it was pinned."""
    transfer, pinned = module.transfer_batch_to_device, []

    def move(batch, device, dataloader_idx):
        tensors = [t for domain in batch.values() for t in vars(domain).values() if isinstance(t, torch.Tensor)]
        pinned.append(all(tensor.is_pinned() for tensor in tensors))
        with within():
            return transfer(batch, device, dataloader_idx)

    module.transfer_batch_to_device = move
    return pinned


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks CUDA itself")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_cuda_sees_no_wait(method, precision, make_plan, make_batch):
    """Nor in the copy of the batch to the device, which waits for what is not in page-locked memory."""
    module = built(method, "daformer_small", make_plan)
    steps, pinned = watched(module, errors), watched_transfer(module, errors)
    fit(module, batches_for(module, make_batch), "gpu", pin=True, devices=1, precision=precision)
    assert steps == [0, 1]
    assert pinned == [True, True]


def test_every_batch_s_way_to_the_device_is_watched(make_plan, make_batch):
    """On a CPU nothing is pinned, and the watch says so."""
    module, moved = built("source_only", "daformer_small", make_plan), []
    pinned = watched_transfer(module, lambda: moved.append(1) or nullcontext())
    fit(module, batches_for(module, make_batch))
    assert pinned == [False, False]
    assert len(moved) == 2


READS = {
    "item": lambda x: x.sum().item(),
    "condition": lambda x: 1 if x.max() > 2 else 0,
    "list": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0.5],
    "put by mask": lambda x: x.clone().index_put_([x > 0.5], torch.zeros(())),
    "unique": lambda x: x.round().unique(),
    "nonzero": lambda x: (x > 0.5).nonzero(),
    "host copy": lambda x: x.mean().cpu(),
    "of its device": lambda x: float(torch.rand(2, device=x.device).max()),
    "repeated": lambda x: x.repeat_interleave(x.round().long()),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_every_kind_of_read_is_found(read):
    x = torch.rand(8)
    with pytest.raises(Waits), NoDeviceReads([x]):
        read(x)


def test_what_the_host_draws_it_may_read():
    x = torch.rand(8, requires_grad=True)
    with NoDeviceReads([x]):
        assert len(torch.rand(2).tolist()) == 2
        (x[int(torch.randint(8, ()))] * torch.where(x > 0.5, x, 0.0)).sum().backward()
    assert x.grad is not None


def test_a_reading_in_the_backward_pass_is_found():
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient * gradient.sum().item()

    x = torch.rand(8, requires_grad=True)
    with pytest.raises(Waits), NoDeviceReads([x]):
        Reads.apply(x).sum().backward()


def test_a_step_that_reads_is_found(make_plan, make_batch):
    module = built("dacs", "daformer_small", make_plan)
    module.finish_step = lambda: float(next(module.parameters()).grad.norm())
    watched(module, lambda module, batch: NoDeviceReads(tensors_of(module, batch)))
    with pytest.raises(Waits):
        fit(module, batches_for(module, make_batch))
