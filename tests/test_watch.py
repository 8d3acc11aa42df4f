"""A watched step: the arguments and results of its functions, without a change to its numbers."""

from __future__ import annotations

import sys

import pytest
import torch

import uda_seg
from command_line import configured, small_run
from uda_seg.callbacks.watch import on_cpu
from uda_seg.methods.class_mixing import ClassMixing
from uda_seg.ops.mixing import class_mix, draw_classes
from uda_seg.ops.pseudo_label import PseudoLabel, pseudo_label
from uda_seg.train import train


@pytest.fixture
def trained(camvid, tmp_path):
    def run(name: str, *callbacks) -> dict[str, torch.Tensor]:
        config = configured("method=dacs", *small_run(camvid, 2), "evaluator.times=1")
        train(config, tmp_path / name, *callbacks)
        content = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        return content["state_dict"]

    return run


def test_the_last_step_is_recorded_and_its_numbers_are_those_of_a_step_that_nobody_watches(trained):
    hook = sys.getprofile()
    watch = uda_seg.Watch(class_mix, pseudo_label, ClassMixing.mix, draw_classes)
    watched, alone = trained("watched", watch), trained("alone")
    assert sys.getprofile() is hook
    assert all(torch.equal(tensor, alone[name]) for name, tensor in watched.items())
    (mix,) = watch[ClassMixing.mix]
    image, label = watch[class_mix]
    assert len(watch[pseudo_label]) == 1  # below its decorator, and of the last of the two steps alone
    (labelled,) = watch[pseudo_label]
    assert torch.equal(mix.given["target"].label, labelled.result.label)
    assert torch.equal(mix.result.label, label.result[:, 0])
    keep = image.given["keep"]
    assert torch.equal(image.result, torch.where(keep, mix.given["source"].image, mix.given["target"].image))
    assert not image.result.requires_grad
    assert watch.logged["train/mix/ce"] > 0
    with pytest.raises(KeyError):
        watch[torch.nn.Module.forward]


def test_a_step_that_fails_ends_the_recording(trained, monkeypatch):
    def fail(*_):
        raise RuntimeError("no optimiser today")

    monkeypatch.setattr(ClassMixing, "finish_step", fail)
    with pytest.raises(RuntimeError, match="today"):
        trained("failed", watch := uda_seg.Watch(class_mix))
    assert sys.getprofile() != watch._observe


def test_records_are_copies():
    tensor = torch.zeros(2, requires_grad=True)
    for value in (PseudoLabel(tensor, tensor, tensor), [tensor], (tensor,), {"a": tensor}):
        found = on_cpu(value)
        assert type(found) is type(value)
        first = next(iter(found.values())) if isinstance(found, dict) else found[0]
        assert not first.requires_grad
        assert first.data_ptr() != tensor.data_ptr()
