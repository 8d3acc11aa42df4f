"""Every method's step equals its plain re-statement: equal weights after several optimiser steps."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import pytorch_lightning as pl
import reference_steps as reference
import torch
from torch.utils.data import DataLoader

from numerics import LEFT, assert_same_sums
from uda_seg.callbacks.ema import TeacherEMA
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.methods.labelled import Labelled, labelled
from uda_seg.methods.lcmsm import LCMSM
from uda_seg.methods.options.base import options_of
from uda_seg.methods.options.lcmsm import LCMSMOptions
from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.methods.self_training import SelfTraining
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings
from uda_seg.methods.source_only import AdaBN, Oracle, SourceOnly
from uda_seg.methods.step import fold

STEPS = 3


def fit(module, batches, accelerator="cpu", pin=False, **options):
    trainer = pl.Trainer(
        accelerator=accelerator, max_steps=len(batches), logger=False, enable_checkpointing=False, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[TeacherEMA()], **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None, pin_memory=pin))
    return trainer


def plain_adamw(student, extra, plan):
    """Parameter groups of the sheet, one group per parameter."""
    groups = []
    for name, p in [*student.named_parameters(), *extra]:
        lr = plan.optimizer.lr * (plan.optimizer.head_lr_multiplier if name.startswith("heads.") else 1)
        decay = 0.0 if name.startswith("encoder.") and "norm" in name else plan.optimizer.weight_decay
        groups.append({"params": [p], "lr": lr, "first": lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), foreach=False)


def run_plain(step_of, student, teacher, batches, plan, extra=(), **context):
    """The loop around a reference step: teacher, learning rate, backward, AdamW."""
    optimizer = plain_adamw(student, list(extra), plan)
    warmup = round(plan.schedule.warmup * plan.steps)
    student.train()
    for step, batch in enumerate(batches):
        if teacher is not None and plan.teacher.update == "start":
            reference.ema(teacher, student, step, plan.teacher.alpha)
        torch.manual_seed(fold(plan.seed, step, 0))
        factor = (1 - step / plan.steps) ** plan.schedule.power
        if step < warmup:
            factor *= 1 - (1 - step / warmup) * (1 - 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = group["first"] * factor
        optimizer.zero_grad()
        plain = {
            "x_s": batch["source"].image / 255.0,
            "y_s": batch["source"].label,
            "x_t": batch["target"].image / 255.0,
            "z_s": batch["source"].depth,
            "z_t": batch["target"].depth,
        }
        step_of(student, plain, teacher=teacher, threshold=plan.teacher.threshold, classes=19, **context)
        optimizer.step()
        if teacher is not None and plan.teacher.update == "end":
            reference.ema(teacher, student, step, plan.teacher.alpha)


def equal_weights(module, student):
    """After steps in float64: Adam divides by sqrt(v), and makes a whole step of a gradient of rounding noise."""
    theirs = dict(student.named_parameters())
    for name, mine in module.segmentor.named_parameters():
        assert_same_sums(mine, theirs[name], name, LEFT)


def frozen(student):
    return copy.deepcopy(student).requires_grad_(False).eval()


@pytest.mark.parametrize(
    "method",
    [
        "source_only",
        "oracle",
        "dacs",
        "dacs_released",
        "daformer",
        "distilled",
        "mic",
        "mic_on_both",
        "lcmsm",
        "lcmsm_without_text",
    ],
)
def test_step_equals_plain_pytorch(method, double, make_segmentor, make_plan, make_batch):
    batches = [make_batch(seed) for seed in range(STEPS)]
    plan = make_plan(schedule=ScheduleSettings(warmup=0.5, power=0.9))
    segmentor = make_segmentor(pretrained=method in ("daformer", "distilled"))
    context, extra = {}, []
    if method in ("source_only", "oracle"):
        module = {"source_only": SourceOnly, "oracle": Oracle}[method](segmentor, plan, SourceOnlyOptions())
        step_of = reference.source_only
    elif method == "dacs":
        module, step_of = SelfTraining(segmentor, plan, SelfTrainingOptions()), reference.dacs
    elif method == "dacs_released":
        plan.teacher.update = "end"
        quirks = {"mix_classes": "image_and_ignore", "source_ce": "labelled", "jitter_order": "bgr"}
        options = SelfTrainingOptions(jitter=0.25, augment_draws="released", **quirks)
        module = SelfTraining(segmentor, plan, options)
        step_of = reference.dacs_released
    elif method == "mic":
        module = SelfTraining(segmentor, plan, SelfTrainingOptions(mask_weight=1.0, mask_block=0.25, mask_ratio=0.7))
        step_of, context = reference.dacs, {"mask_block": 8, "mask_ratio": 0.7}
    elif method == "mic_on_both":
        module = SelfTraining(
            segmentor,
            plan,
            SelfTrainingOptions(
                mask_weight=1.0, mask_block=0.25, mask_ratio=0.7, mask_augment=False, mask_images="both"
            ),
        )
        step_of, context = reference.dacs, {"mask_block": 8, "mask_ratio": 0.7, "both": True}
    elif method == "daformer":
        module, step_of = SelfTraining(segmentor, plan, SelfTrainingOptions(feature_distance=0.5)), reference.daformer
        context = {"reference": frozen(segmentor.encoder), "things": CITYSCAPES.things, "weight": 0.5}
    elif method == "distilled":
        module, step_of = SelfTraining(segmentor, plan, SelfTrainingOptions(distillation=0.5)), reference.distilled
        context = {"reference": frozen(segmentor.encoder), "weight": 0.5}
    else:
        text = "file" if method == "lcmsm" else "none"
        module = LCMSM(segmentor, plan, LCMSMOptions(text=text, width=8, mask_block=0.25))
        step_of, context = reference.lcmsm, {"mask_block": 8, "mask_ratio": 0.5}
        module.setup("fit")
        module.double()  # the class text comes from a file
        if module.projection is None:
            context["project"] = lambda: torch.zeros(())
        else:
            projection, embeddings = copy.deepcopy(module.projection), module.embeddings.clone()
            context["project"] = lambda: projection(embeddings)
            extra = [(f"projection.{n}", p) for n, p in projection.named_parameters()]
    student = copy.deepcopy(module.segmentor)
    teacher = frozen(student) if module.teacher is not None else None
    run_plain(step_of, student, teacher, batches, plan, extra, **context)
    fit(module, batches)
    equal_weights(module, student)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_is_one_optimiser_step(parts, double, make_segmentor, make_plan, make_batch):
    """Micro-batches of source-only give the gradient of the whole batch (a network without batch norm or dropout)."""
    batches = [make_batch(seed, batch=4) for seed in range(2)]
    weights = []
    for accumulate in (1, parts):
        plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=0.1, accumulate=accumulate))
        module = SourceOnly(make_segmentor(), plan, SourceOnlyOptions())
        module.train = lambda mode=True, m=module: (
            m.eval() if mode else pl.LightningModule.train(m, False)
        )  # running statistics
        module.segmentor.eval()
        trainer = fit(module, batches)
        assert trainer.global_step == 2
        weights.append(torch.cat([p.detach().flatten() for p in module.segmentor.parameters()]))
    assert_same_sums(weights[0], weights[1], share=LEFT)


def test_gradients_reach_what_they_should_and_nothing_else(make_segmentor, make_plan, make_batch):
    module = LCMSM(make_segmentor(), make_plan(), LCMSMOptions(text="file", width=8))
    teacher = [p.clone() for p in module.teacher.parameters()]
    fit(module, [make_batch()])
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.projection.parameters())
    assert any(p.grad.abs().sum() > 0 for p in module.segmentor.heads["language"].parameters())
    assert all(p.grad is None for p in module.teacher.parameters())
    assert "embeddings" not in module.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(teacher, module.teacher.parameters(), strict=True)), (
        "first update copies"
    )


@pytest.mark.parametrize("draws", ["batch", "released"])
@pytest.mark.parametrize("method", ["mic", "lcmsm"])
def test_what_augmented_images_share(method, draws, make_segmentor, make_plan, make_batch, monkeypatch):
    """As released, mixed images have orders and blurs of their own, masked ones one of each."""
    options = {"augment_draws": draws, "mask_block": 0.25}
    if method == "mic":
        module = SelfTraining(make_segmentor(), make_plan(), SelfTrainingOptions(mask_weight=1.0, **options))
    else:
        module = LCMSM(make_segmentor(), make_plan(), LCMSMOptions(text="none", width=8, **options))
    applied, apply_draw = [], module.apply_draw
    monkeypatch.setattr(module, "apply_draw", lambda image, draw: applied.append(draw) or apply_draw(image, draw))
    fit(module, [make_batch(batch=4)])
    mixed = 0 if method == "mic" else 1  # LC-MSM masks the source first, and the mixture last
    assert len(applied) == (2 if method == "mic" else 3)
    for place, draw in enumerate(applied):
        own_order = draws == "released" and place == mixed
        own_sigma = draws == "batch" or place == mixed
        assert (len(set(draw.order)) > 1) == own_order
        assert (len(set(draw.sigma.tolist())) > 1) == own_sigma


def test_running_statistics_can_be_those_of_the_mixed_images(make_segmentor, make_plan, make_batch, monkeypatch):
    module = SelfTraining(make_segmentor(), make_plan(running_statistics="mixed"), SelfTrainingOptions())
    plain, mixed, mix = copy.deepcopy(module.segmentor).train(), [], module.mix
    monkeypatch.setattr(module, "mix", lambda *args: mixed.append(mix(*args)) or mixed[-1])
    fit(module, [make_batch()])
    with torch.no_grad():
        plain.features(mixed[0].image)
    seen = dict(module.segmentor.encoder.named_buffers())
    assert any(name.endswith("running_mean") for name in seen)
    for name, wanted in plain.encoder.named_buffers():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(seen[name], wanted)


class Target:
    """Stands for the data module where a method asks it for target images."""

    has_target = True

    def __init__(self, batches):
        self.batches = batches

    def target_batches(self, count):
        return iter([batch["target"] for batch in self.batches][:count])


@pytest.mark.parametrize(
    ("build", "which", "taken"),
    [
        (SelfTraining, "target", True),
        (SelfTraining, "mixed", False),
        (SelfTraining, "all", False),
        (SourceOnly, "target", False),
        (AdaBN, "all", True),
    ],
)
def test_before_a_validation_batch_norm_takes_the_statistics_of_the_target(
    build, which, taken, make_segmentor, make_plan, make_batch
):
    module = build(make_segmentor(), make_plan(running_statistics=which, statistics_batches=3), options_of(build)())
    trainer = fit(module, [make_batch()])
    batches = [make_batch(seed) for seed in range(1, 5)]
    trainer.datamodule = Target(batches)
    norm = next(m for m in module.segmentor.modules() if isinstance(m, torch.nn.BatchNorm2d))
    inputs, before = [], copy.deepcopy(module.segmentor)
    watch = norm.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    module.segmentor.eval()
    with torch.no_grad():
        for batch in batches[:3]:
            module.segmentor.predict(batch["target"].image / 255.0)
    watch.remove()
    wanted = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    module.on_validation_epoch_start()
    if taken:
        torch.testing.assert_close(norm.running_mean, wanted)
    else:
        assert all(torch.equal(b, c) for b, c in zip(before.buffers(), module.segmentor.buffers(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(before.parameters(), module.segmentor.parameters(), strict=True))
    assert not any(m.training for m in module.segmentor.modules())


def test_nan_stops_the_run_and_keeps_the_weights(make_segmentor, make_plan, make_batch):
    module = SourceOnly(make_segmentor(), make_plan(), SourceOnlyOptions())
    with torch.no_grad():
        module.segmentor.heads["main"].conv_seg.bias[0] = math.nan
    before = copy.deepcopy(module.segmentor.state_dict())
    with pytest.raises(UserError, match=r"source/ce is not finite at step 0"):
        fit(module, [make_batch()])
    for name, parameter in module.segmentor.named_parameters():
        torch.testing.assert_close(parameter, before[name], equal_nan=True)


def test_feature_distance_is_off_without_pretrained_weights(make_segmentor, make_plan):
    assert SelfTraining(make_segmentor(), make_plan(), SelfTrainingOptions(feature_distance=0.005)).reference is None
    module = SelfTraining(make_segmentor(pretrained=True), make_plan(), SelfTrainingOptions(feature_distance=0.005))
    assert module.reference is not None
    assert not any("reference" in name for name in module.state_dict())


def test_distillation_is_of_both_domains_for_a_pretrained_encoder_alone(make_segmentor, make_plan, make_batch, caplog):
    with caplog.at_level(logging.INFO):
        assert SelfTraining(make_segmentor(), make_plan(), SelfTrainingOptions(distillation=0.1)).reference is None
    assert "no distillation" in caplog.text
    module = LCMSM(make_segmentor(pretrained=True), make_plan(), LCMSMOptions(text="none", width=8, distillation=0.1))
    fit(module, [make_batch()])
    terms = {name for name in module.recorded if "distillation" in name or "distance" in name}
    assert terms == {
        f"train/{name}" for name in ("source/distillation", "target/distillation", "source/feature_distance")
    }


def test_teacher_in_train_mode_uses_batch_statistics_and_keeps_its_buffers_out_of_the_average(
    make_segmentor, make_plan, make_batch
):
    from uda_seg.methods.teacher import Teacher

    student = make_segmentor()
    teacher = Teacher(student, 0.9, batch_norm="train")
    image = make_batch()["target"].image / 255.0
    student.train()
    logits = teacher.predict(image)
    for module in student.modules():  # dropout off, batch statistics on
        if isinstance(module, torch.nn.Dropout2d):
            module.eval()
    torch.testing.assert_close(logits, student.predict(image).detach())
    assert not any(m.training for m in teacher.modules() if isinstance(m, torch.nn.BatchNorm2d))
    own = [buffer.clone() for buffer in teacher.network.buffers()]
    for _ in range(2):  # the first copies
        teacher.update(make_segmentor(seed=1))
    assert all(torch.equal(*pair) for pair in zip(teacher.network.buffers(), own, strict=True))


def test_the_number_of_updates_is_a_tensor_of_the_state(make_segmentor):
    from uda_seg.methods.teacher import Teacher

    student = make_segmentor()
    teacher, other = Teacher(student, 0.9), Teacher(student, 0.9)
    for _ in range(3):
        teacher.update(student)
    state = copy.deepcopy(teacher.state_dict())
    assert state["update_count"].dtype == torch.int64
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other.load_state_dict(state)
    assert other.updates == state["update_count"] == 3
    teacher.update(student)
    other.update(make_segmentor(1))
    assert other.state_dict()["update_count"] == 4
    weight = next(iter(other.network.parameters()))
    first, second = (next(iter(s.parameters())) for s in (student, make_segmentor(1)))
    torch.testing.assert_close(weight, 0.75 * first + 0.25 * second)


def test_a_teacher_follows_what_its_student_has_become(make_segmentor):
    """It remembers places, not tensors: moving a network replaces its buffers, a copy has a student of its own."""
    from uda_seg.methods.teacher import Teacher

    student = make_segmentor()
    teacher = Teacher(student, 0.9)
    teacher.update(student)
    assert "_followed" not in teacher.state_dict()
    assert len(list(teacher.modules())) == len(list(student.modules())) + 1
    both = copy.deepcopy(torch.nn.ModuleDict({"student": student, "teacher": teacher})).double()
    for tensor in [*both["student"].parameters(), *both["student"].buffers()]:
        tensor.data.add_(1)
    both["teacher"].update(both["student"])
    for tensor in [*student.parameters(), *student.buffers()]:
        tensor.data.mul_(3)
    teacher.update(student)
    for (name, mine), first in zip(teacher.network.state_dict().items(), student.state_dict().values(), strict=True):
        if mine.is_floating_point():
            torch.testing.assert_close(mine, first * (0.5 + 0.5 / 3))
            torch.testing.assert_close(both["teacher"].network.state_dict()[name], first.double() / 3 + 0.5)


def test_smaller_source_batches_are_reused_in_order(make_segmentor, make_plan, make_batch, monkeypatch):
    """Target b mixes with source b mod B_s."""
    module = SelfTraining(make_segmentor(), make_plan(), SelfTrainingOptions())
    seen = {}

    def remember(source, target, keep):
        seen.setdefault("source", source)
        return source

    batch = make_batch(batch=4)
    source = labelled(batch["source"].part(0, 2))
    target = Labelled(batch["target"].image / 255.0, batch["source"].label, torch.ones(4, 32, 64))
    monkeypatch.setattr("uda_seg.methods.class_mixing.class_mix", remember)
    module.mix(source, target)
    torch.testing.assert_close(seen["source"], source.image[[0, 1, 0, 1]])
