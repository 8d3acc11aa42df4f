"""The teacher's average against the loop over tensors, and its fixed points."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reference import ema_loop
from uda_seg.ops.ema import ema_decay, ema_update


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_fused_update_equals_the_loop_over_a_ramp():
    fused, slow = network(0), network(0)
    for step in range(30):
        student = network(step + 1)
        decay = ema_decay(step, 0.9)
        ema_update(fused.parameters(), student.parameters(), decay)
        ema_loop(slow, student, step, 0.9)
        for a, b in zip(fused.parameters(), slow.parameters(), strict=True):
            assert a.detach().numpy() == pytest.approx(b.detach().numpy(), abs=1e-6)


def test_first_update_copies():
    teacher, student = network(0), network(1)
    ema_update(teacher.parameters(), student.parameters(), ema_decay(0, 0.999))
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))


@given(st.floats(0, 1))
def test_a_student_that_agrees_does_not_move_the_teacher(decay):
    teacher = nn.Linear(3, 3)
    before = copy.deepcopy(teacher.state_dict())
    ema_update(teacher.parameters(), copy.deepcopy(teacher).parameters(), decay)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_full_decay_freezes_the_teacher():
    teacher = network(0)
    ema_update(teacher.parameters(), network(1).parameters(), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), network(0).parameters(), strict=True))


def test_integer_buffers_are_copied():
    teacher, student = network(0), network(1)
    student[1].num_batches_tracked.fill_(7)
    student[1].running_mean.fill_(2.0)
    ema_update(teacher.buffers(), student.buffers(), 0.75)
    assert teacher[1].num_batches_tracked.item() == 7
    assert teacher[1].running_mean.tolist() == [0.5] * 4


def test_different_networks_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        ema_update(network(0).parameters(), nn.Linear(2, 2).parameters(), 0.5)


def test_before_alpha_the_teacher_is_the_plain_mean():
    students = torch.arange(1.0, 6.0)
    teacher = torch.zeros(())
    for step, student in enumerate(students):
        ema_update([teacher], [student], ema_decay(step, 0.999))
    assert teacher.item() == pytest.approx(3.0)


@given(st.integers(0, 10**6), st.floats(0, 0.9999))
def test_decay_ramps_up_to_alpha(step, alpha):
    assert 0.0 <= ema_decay(step, alpha) <= ema_decay(step + 1, alpha) <= alpha
