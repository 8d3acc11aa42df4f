"""The classic loop computes what ours does: the figure is about how, not about what."""

from __future__ import annotations

import io

import pytest
import torch
from test_all import batches_for, tiny
from test_steps import equal_weights, fit

from numerics import LEFT, assert_same_sums
from uda_seg.bench.baselines import augment_each
from uda_seg.bench.classic import HABITS, ClassicLoop, PlainTrainer
from uda_seg.config.compose import composed
from uda_seg.ops.augment import draw_strong, strong_augment
from uda_seg.runs.build import instantiate_module


def built(method, make_plan):
    config = tiny(composed([f"method={method}", "model=daformer_small", "pretrained=null"]))
    if method == "lcmsm":
        config.method["width"] = 8
    torch.manual_seed(0)
    plan = make_plan(teacher=config.teacher, log_every=2)
    module = instantiate_module(config, plan)
    module.setup("fit")  # draws the projection of the text
    return module.to(torch.get_default_dtype())


def looped(module, batches, folder, habits):
    log = io.StringIO()
    loop = ClassicLoop(module, PlainTrainer(folder, 4), iter(batches), torch.device("cpu"), log, habits)
    for _ in batches:
        loop.step()
    return log.getvalue()


@pytest.mark.parametrize("habits", [HABITS, ()], ids=["classic", "without habits"])
@pytest.mark.parametrize("method", ["lcmsm", "t2sda", "bicl", "corda"])
def test_classic_steps_are_ours(method, habits, double, make_plan, make_batch, tmp_path):
    """Several terms of one forward, a teacher that moves at the start or the end, and one that there is none of."""
    ours, classic = built(method, make_plan), built(method, make_plan)
    batches = batches_for(ours, make_batch)
    fit(ours, batches)
    logged = looped(classic, batches, tmp_path, habits)
    equal_weights(ours, classic.segmentor)
    if ours.teacher is not None:
        theirs = classic.teacher.state_dict()
        unreached = tuple(f"network.heads.{head}." for head in ours.teacher.unreached)
        for name, tensor in ours.teacher.state_dict().items():
            if name.startswith(unreached) and "running" in name:
                continue  # the original teacher has untouched statistics of a head that it never runs
            assert_same_sums(theirs[name], tensor, name, LEFT)
    assert "gradient_norm" in logged


class Counted:
    """Counts what a habit is about, while a step of DACS with two terms of one forward is taken."""

    def __init__(self, monkeypatch):
        self.backwards = self.read = 0
        backward, item = torch.autograd.backward, torch.Tensor.item

        def counted_backward(*args, **kwargs):
            self.backwards += 1
            return backward(*args, **kwargs)

        def counted_item(tensor):
            self.read += 1
            return item(tensor)

        monkeypatch.setattr(torch.autograd, "backward", counted_backward)
        monkeypatch.setattr(torch.Tensor, "item", counted_item)


@pytest.mark.parametrize(
    ("habits", "backwards", "read"), [((), 2, 0), (("backward",), 8, 0), (("item",), 2, 9), (HABITS, 8, 9)]
)
def test_habits_are_what_they_say(habits, backwards, read, make_plan, make_batch, tmp_path, monkeypatch):
    """CorDA has four terms on each of two forwards, and a pass of the teacher."""
    module = built("corda", make_plan)
    batches = batches_for(module, make_batch)[:1]
    counted = Counted(monkeypatch)
    looped(module, batches, tmp_path, habits)
    assert (counted.backwards, counted.read) == (backwards, read)


def test_images_are_augmented_alike_one_by_one():
    torch.manual_seed(0)
    image = torch.rand(3, 3, 16, 24)
    draw = draw_strong(3, jitter_probability=1.0, blur_probability=1.0)
    torch.testing.assert_close(augment_each(image, draw), strong_augment(image, draw), rtol=1e-5, atol=1e-6)
