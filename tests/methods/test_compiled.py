"""A compiled network computes what the plain one does, under the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from test_steps import fit
from torch import _dynamo, nn
from torch._dynamo.utils import counters

from numerics import assert_same_sums
from uda_seg.errors import UserError
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.settings import OptimizerSettings
from uda_seg.models.compilation import as_written, check_compiler, compile_network
from uda_seg.models.segmentor import Encoder, Head, Segmentor


class Stage(Encoder):
    """The smallest encoder with batch norm: tracing takes most of the time here."""

    channels, strides = (4,), (4,)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4)

    def forward(self, x):
        return [self.norm(self.conv(x)).relu()]


class Pixels(Head):
    """One convolution."""

    width = 4

    def __init__(self, channels, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(channels[0], num_classes, 1)

    def fuse(self, stages):
        return stages[0] * 2

    def classify(self, fused):
        return self.conv(fused)


def network(backend=None):
    torch.manual_seed(0)
    return Segmentor(Stage(), Pixels, 19, compile=backend is not None, compile_backend=backend or "inductor")


def test_compiled_training_is_the_same_training(make_plan, make_batch):
    """MIC: the student with moving and with frozen statistics, and the teacher. Nothing is compiled twice."""
    # Not Adam: it would make a whole step of what rounding leaves of the gradient of a bias before batch norm.
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=0.1))
    states, made = [], []
    for backend in (None, "aot_eager"):
        module = SelfTraining(network(backend), plan, SelfTrainingOptions(mask_weight=1.0, mask_block=0.25))
        counters.clear()
        fit(module, [make_batch(seed) for seed in range(2)])
        made.append(counters["stats"]["unique_graphs"])
        states.append(module.state_dict())
        assert not counters["graph_break"]
    assert made[0] == 0 < made[1]
    assert list(states[0]) == list(states[1])
    for name, tensor in states[0].items():
        assert_same_sums(states[1][name], tensor, name)
    with torch.no_grad(), as_written(module.segmentor):
        module.segmentor(torch.rand(1, 3, 48, 32))
    assert counters["stats"]["unique_graphs"] == made[1]  # another size, between steps
    with torch.no_grad():
        module.segmentor.eval()(torch.rand(2, 3, 32, 64))
    assert counters["stats"]["unique_graphs"] > made[1]


def test_a_copy_runs_on_its_own_weights():
    segmentor = network("eager")
    compile_network(segmentor)
    other = copy.deepcopy(segmentor)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    x = torch.rand(1, 3, 8, 8)
    assert segmentor(x).any()
    assert not other(x).any()


def test_a_machine_without_compiler_says_so(monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no g++ here")

    monkeypatch.setattr(_dynamo.config, "suppress_errors", False)
    with pytest.raises(UserError, match=r"model.compile=true.*install g\+\+"):
        check_compiler(fails, torch.device("cpu"))


def test_what_cannot_be_traced_is_refused():
    with pytest.raises(UserError, match="leave one of them out"):
        Segmentor(Stage(), Pixels, 19, compile=True, activation_checkpointing=True)
