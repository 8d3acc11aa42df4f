"""CorDA's step against its plain re-statement, its options, and what each part learns from."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import reference_steps as reference
import torch
from test_steps import equal_weights, fit, frozen, run_plain

from uda_seg.errors import UserError
from uda_seg.methods.corda import CorDA
from uda_seg.methods.labelled import labelled
from uda_seg.methods.options.corda import CorDAOptions
from uda_seg.methods.released.repeated_sgd import RepeatedSGD, repeats_of
from uda_seg.methods.settings import OptimizerSettings, TeacherSettings
from uda_seg.models.deeplab import DeepLabV2Head, ResNet101
from uda_seg.models.segmentor import Segmentor


def test_step_equals_plain_pytorch(double, make_segmentor, make_plan, make_batch):
    batches = [make_batch(seed, depth=True) for seed in range(3)]
    plan = make_plan(teacher=TeacherSettings(alpha=0.9, threshold=0.06, update="end"))
    module = CorDA(make_segmentor(), plan, CorDAOptions())
    student = copy.deepcopy(module.segmentor)
    run_plain(reference.corda, student, frozen(student), batches, plan)
    fit(module, batches)
    equal_weights(module, student)


def gradients(module):
    """Which parts of the student have a gradient that is not zero."""
    return {
        ".".join(name.split(".")[:4])
        for name, p in module.segmentor.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }


def test_the_target_decoder_learns_from_target_pixels_of_mixtures_alone(make_segmentor, make_plan, make_batch):
    batch = make_batch(depth=True)
    batch["target"].depth.fill_(1.0)
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions())
    fit(module, [batch])
    learnt = gradients(module)
    assert any(name.startswith("heads.two_task.source_depth") for name in learnt)
    assert any(name.startswith("heads.two_task.initial_source_depth") for name in learnt)
    assert not any("target_depth" in name for name in learnt)


def test_gradients_cross_between_the_tasks_unless_they_are_kept_apart(make_segmentor, make_plan, make_batch):
    for correlation in (True, False):
        module = CorDA(make_segmentor(), make_plan(), CorDAOptions(correlation=correlation))
        head = module.segmentor.heads["two_task"]
        fused = torch.randn(2, head.width, 6, 6)
        head.eval().tasks(fused).segmentation.sum().backward()
        crossed = any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.depth_features.parameters())
        assert crossed == correlation


def test_the_teacher_owns_a_two_task_head_that_reads_its_own_main_head(make_segmentor, make_plan):
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions())
    student, teacher = module.segmentor, module.teacher.network
    assert teacher.eval_head == "two_task"
    assert teacher.heads["two_task"].main[0] is teacher.heads["main"]
    assert student.heads["two_task"].main[0] is student.heads["main"]
    assert not any("two_task.main" in name for name in module.state_dict())


def test_the_main_head_labels_first_where_it_is_asked_to(make_segmentor, make_plan, make_batch, monkeypatch):
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions(initial="main", label_by_initial=0.5))
    asked, label_target = [], module.label_target
    monkeypatch.setattr(module, "label_target", lambda t, head=None: asked.append(head) or label_target(t, head))
    fit(module, [make_batch(seed, depth=True) for seed in range(4)])
    assert asked == ["main", "main", None, None]


def test_features_are_as_wide_as_their_attention_can_be(make_segmentor, make_plan):
    with pytest.raises(UserError, match=r"method\.width=6: .* multiple of 4"):
        CorDA(make_segmentor(), make_plan(), CorDAOptions(width=6))


@pytest.mark.parametrize("depth_weight", ["own", "batch_mean"])
def test_the_picture_of_difficulty_is_not_relative_to_the_batch(depth_weight, make_segmentor, make_plan, make_batch):
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions(depth_weight=depth_weight))
    fit(module, [make_batch(depth=True)])
    head = module.segmentor.heads["two_task"]
    for decoder, z in ((head.source_depth, 50.0), (head.target_depth, 20.0)):
        for p in decoder.parameters():
            torch.nn.init.zeros_(p)
        torch.nn.init.constant_(next(p for p in decoder.parameters() if p.dim() == 1), z)
    module.panel = {}
    source = labelled(make_batch(depth=True)["source"])
    mixed = replace(source, depth=torch.full_like(source.depth, 13.0), weight=torch.ones_like(source.image[:, 0]),
                    pasted=torch.zeros_like(source.label[:, None], dtype=torch.bool))  # fmt: skip
    module.mixed_terms(mixed)
    torch.testing.assert_close(module.panel["adaptation_difficulty"], torch.full((1, 32, 64), 1 - 1e-3))


@pytest.mark.parametrize("depth_weight", ["own", "batch_mean", "none"])
@pytest.mark.parametrize("initial", ["features", "main"])
def test_options_run_and_matter(depth_weight, initial, make_segmentor, make_plan, make_batch):
    options = {"label_by_initial": 0.5} if initial == "main" else {}
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions(depth_weight=depth_weight, initial=initial, **options))
    trainer = fit(module, [make_batch(seed, depth=True) for seed in range(2)])
    assert trainer.global_step == 2
    learnt = any(name.startswith("heads.main.conv_seg") for name in gradients(module))
    assert learnt == (initial == "main")


def test_released_choices_differ_from_the_default(make_segmentor, make_plan, make_batch):
    """Each quirk changes the weights; without this an option could be read and forgotten."""

    def weights(**options):
        module = CorDA(make_segmentor(), make_plan(), CorDAOptions(**options))
        fit(module, [make_batch(depth=True)])
        return torch.cat([p.detach().flatten() for p in module.segmentor.encoder.parameters()])

    options = ({}, {"depth_weight": "batch_mean"}, {"depth_weight": "none"}, {"jitter_order": "bgr"},
               {"mix_classes": "image_and_ignore"}, {"dilations": [1]}, {"source_depth": 0.0},
               {"depth_start": 0.0}, {"augment_draws": "released"})  # fmt: skip
    results = [weights(**o) for o in options]
    for (i, a), (j, b) in itertools.combinations(enumerate(results), 2):
        assert not torch.equal(a, b), (options[i], options[j])


def test_untrained_decoders_start_at_the_depth_of_a_street(make_segmentor, make_plan):
    head = CorDA(make_segmentor(), make_plan(), CorDAOptions()).segmentor.heads["two_task"].eval()
    tasks = head.tasks(torch.zeros(1, head.width, 6, 6))
    for z in (tasks.source_depth, tasks.target_depth, tasks.initial_source_depth, tasks.initial_target_depth):
        assert z.sub(50).abs().max() < 1


def test_released_decoders_start_near_nothing(make_segmentor, make_plan):
    head = CorDA(make_segmentor(), make_plan(), CorDAOptions(depth_start=0.0)).segmentor.heads["two_task"]
    for bias in head.depth_biases():
        assert 0 < bias.abs().max() < 1


def test_a_trained_main_head_hands_over_its_segmentation(make_segmentor, make_plan, make_batch):
    """With init=, the network that labels the target begins as the one that was trained, and goes on learning."""
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions())
    head, image = module.segmentor.heads["two_task"], torch.rand(2, 3, 32, 64)
    torch.nn.init.normal_(module.segmentor.heads["main"].conv_seg.weight)
    module.segmentor.eval()
    assert not torch.allclose(module.segmentor.predict(image), module.segmentor.predict(image, "main"), atol=1e-2)
    module.start_heads({"two_task"})
    torch.testing.assert_close(module.segmentor.predict(image), module.segmentor.predict(image, "main"))
    fit(module, [make_batch(seed, depth=True) for seed in range(2)])
    for name in ("segmentation_features.0.bn3", "segmentation_features.1.conv1", "to_segmentation.gate"):
        weight = dict(head.named_modules())[name].weight
        assert weight.grad.abs().sum() > 0, name


def test_a_main_head_of_another_form_hands_over_nothing(make_plan, caplog):
    network = Segmentor(ResNet101(blocks=(1, 1, 1, 1), width=4), DeepLabV2Head, 19)
    with caplog.at_level("INFO"):
        CorDA(network, make_plan(), CorDAOptions()).start_heads({"two_task"})
    assert "the two-task head starts untrained" in caplog.text


@pytest.mark.parametrize("running_statistics", ["all", "mixed"])
def test_the_source_moves_running_statistics_where_all_images_do(
    running_statistics, make_segmentor, make_plan, make_batch
):
    module = CorDA(make_segmentor(), make_plan(running_statistics=running_statistics), CorDAOptions())
    fit(module, [make_batch(depth=True)])
    norm = next(m for m in module.segmentor.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    batch = make_batch(1, depth=True)
    module.source_terms(labelled(batch["source"]))
    assert torch.equal(norm.running_mean, before) == (running_statistics == "mixed")


def test_images_without_valid_depth_train_on_their_labels(make_segmentor, make_plan, make_batch):
    batch = make_batch(depth=True)
    for domain in batch.values():
        domain.depth.fill_(1.0)
    module = CorDA(make_segmentor(), make_plan(), CorDAOptions())
    fit(module, [batch])
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert any("segmentation" in name for name in gradients(module))


def test_label_by_initial_needs_a_head_that_can_label(make_segmentor, make_plan):
    with pytest.raises(UserError, match=r"method.label_by_initial needs method.initial=main"):
        CorDA(make_segmentor(), make_plan(), CorDAOptions(label_by_initial=0.1))


def test_the_encoder_is_updated_as_often_as_the_released_code_lists_it(make_plan, make_batch):
    """Buffer, decay and step, k times with one gradient, tensor by tensor."""
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=1e-3, weight_decay=5e-4))
    torch.manual_seed(0)
    network = Segmentor(ResNet101(blocks=(1, 1, 1, 1), width=4), DeepLabV2Head, 19)
    module = CorDA(network, plan, CorDAOptions(encoder_updates="released"))
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, RepeatedSGD)
    names = {id(p): name for name, p in module.named_parameters()}
    expected = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            value, buffer = p.detach().clone(), torch.zeros_like(p)
            gradients = [torch.randn_like(p) for _ in range(2)]
            for gradient in gradients:
                for _ in range({"conv1": 1, "downsample": 4}.get(part_of(names[id(p)]), group["repeats"])):
                    buffer = 0.9 * buffer + gradient + group["weight_decay"] * value
                    value = value - group["lr"] * buffer
            expected[id(p)] = (gradients, value)
    for turn in range(2):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = expected[id(p)][0][turn]
        optimizer.step()
    for group in optimizer.param_groups:
        for p in group["params"]:
            torch.testing.assert_close(p.detach(), expected[id(p)][1], rtol=1e-4, atol=1e-5)


def part_of(name: str) -> str:
    """`downsample`, `conv1` of the stem, or nothing in particular."""
    if "downsample" in name:
        return "downsample"
    return "conv1" if name == "segmentor.encoder.conv1.weight" else ""


def test_how_often_each_kind_of_tensor_is_listed():
    assert repeats_of("segmentor.encoder.conv1.weight") == 1
    assert repeats_of("segmentor.encoder.layer3.4.conv2.weight") == 3
    assert repeats_of("segmentor.encoder.layer1.0.downsample.0.weight") == 4
    assert repeats_of("segmentor.heads.two_task.segmentation.conv2d_list.0.weight") == 1
