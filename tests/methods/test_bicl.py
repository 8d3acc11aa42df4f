"""BiCL: the whole step against its plain re-statement, its rounds, and the sheet's acceptance checks."""

from __future__ import annotations

import copy
import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import reference_steps as reference
import torch
from test_bicl_released import half_released
from test_steps import equal_weights, fit, run_plain
from torch import nn

from data.trees import streets_tree
from numerics import LEFT, assert_same_sums
from uda_seg.bench.classic import ClassicLoop, PlainTrainer
from uda_seg.callbacks.checkpoint import Checkpoints
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.settings import DataSettings, DomainSettings
from uda_seg.data.storage.label_store import StoredLabels
from uda_seg.errors import UserError
from uda_seg.methods import rounds, static_labels
from uda_seg.methods.bicl import BiCL
from uda_seg.methods.options.bicl import Ablation, BiCLOptions
from uda_seg.methods.options.source_only import SourceOnlyOptions
from uda_seg.methods.round_schedule import RoundSchedule
from uda_seg.methods.source_only import SourceOnly
from uda_seg.methods.static_labels import label_target
from uda_seg.models.inference import Inference
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.timm_encoder import TimmEncoder
from uda_seg.ops.contrast import similarity, transfer_labels

STEPS = 3


def with_labels(batch, seed):
    """A batch that brings static labels, every third of them missing."""
    g = torch.Generator().manual_seed(100 + seed)
    target = batch["target"]
    source = batch["source"].label.flip(0)
    target.pseudo = torch.where(torch.rand(source.shape, generator=g) < 0.33, 255, source).to(torch.uint8)
    return batch


@pytest.fixture
def labelled_batches(make_batch):
    return [with_labels(make_batch(seed), seed) for seed in range(STEPS)]


@pytest.mark.parametrize(("step", "augmented"), [*((step, False) for step in Ablation), (Ablation.CALIBRATION, True)])
def test_step_equals_plain_pytorch(step, augmented, double, labelled_batches, make_segmentor, make_plan):
    options = {"warmup": 0.0, "temperature": 0.5, "dynamic_threshold": 0.06, "calibration_momentum": 0.6}
    options |= {"source_augment": augmented}
    options |= {"feature": "logits", "entropy_weight": 0.4, "entropy_kind": "shannon"}
    module = half_released(make_segmentor(), make_plan(), until=step.name.lower(), **options)
    student, xi = copy.deepcopy(module.segmentor), torch.zeros(19, 19)
    labels = iter([batch["target"].pseudo for batch in labelled_batches])

    def step_of(network, batch, **_):
        reference.bicl(network, batch, next(labels), xi, int(step), 0.5, 0.06, 0.6, augmented)

    run_plain(step_of, student, None, labelled_batches, module.plan)
    fit(module, labelled_batches)
    equal_weights(module, student)
    assert_same_sums(module.calibration.value, xi, share=LEFT)
    assert (xi.abs().sum() > 0) == (step == Ablation.CALIBRATION)


@pytest.mark.parametrize("cuda", [False, True])
def test_labels_are_pinned_as_the_loader_pins_the_rest(cuda, make_batch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    static = StoredLabels(SimpleNamespace(read=lambda *_: torch.zeros(2, 64, 64, dtype=torch.uint8)), 0)
    target = make_batch(0)["target"]
    target.pseudo, target.window = None, torch.zeros(len(target.index), 3, dtype=torch.int64)
    assert (static.add_to(target).pseudo == cuda).all()


def run_once(module, batch):
    fit(module, [batch])
    return module


def test_displacements_stay_zero_at_momentum_one_and_for_equal_domains(make_segmentor, make_plan, labelled_batches):
    batch = labelled_batches[0]
    assert (
        run_once(BiCL(make_segmentor(), make_plan(), BiCLOptions(calibration_momentum=1.0)), batch).calibration.value
        == 0
    ).all()
    same = copy.deepcopy(batch)
    same["target"].image, same["target"].pseudo = same["source"].image, same["source"].label
    segmentor = make_segmentor()
    for dropout in (m for m in segmentor.modules() if isinstance(m, torch.nn.Dropout2d)):
        dropout.p = 0.0
    module = run_once(BiCL(segmentor, make_plan(), BiCLOptions(feature="backbone", calibration_momentum=0.0)), same)
    assert module.calibration.value.abs().max() < 1e-5
    assert (
        run_once(BiCL(make_segmentor(), make_plan(), BiCLOptions(feature="backbone", calibration_momentum=0.0)), batch)
        .calibration.value.abs()
        .max()
        > 1e-2
    )


def test_without_displacement_dynamic_labels_are_plain_transfer(make_segmentor, make_plan, labelled_batches):
    shown = {}
    options = {"feature": "logits", "temperature": 0.5, "dynamic_threshold": 0.06}
    module = half_released(make_segmentor(), make_plan(), calibration_momentum=1.0, **options)
    module.log_images = lambda **tensors: shown.update(tensors)
    g = torch.Generator().manual_seed(0)
    f_s, f_t = torch.randn(2, 19, 4, 8, generator=g), torch.randn(2, 19, 4, 8, generator=g)
    y_s = labelled_batches[0]["source"].label[:, ::8, ::8]
    y_f = torch.full_like(y_s, 255)
    y_f[:, :2] = 3
    trusted = torch.ones_like(y_f, dtype=torch.bool)
    trusted[:, 3, 2:] = False
    module.contrast(f_s, y_s, f_t, y_f, trusted)
    prototypes = torch.zeros(2, 19, 19)
    present = torch.zeros(2, 19, dtype=torch.bool)
    for b in range(2):
        for c in range(19):
            if (y_s[b] == c).any():
                prototypes[b, c], present[b, c] = f_s[b][:, y_s[b] == c].mean(1), True
    plain = transfer_labels(similarity(f_t, prototypes, present, 0.5, "farthest"), 0.06)
    assert (plain[:, 3, 2:] != 255).any()
    plain[:, 3, 2:] = 255  # not trusted
    hybrid = shown["hybrid_label"][:, ::8, ::8]
    assert torch.equal(hybrid[:, :2], y_f[:, :2])  # static labels win
    assert torch.equal(hybrid[:, 2:], plain[:, 2:])
    assert ((hybrid != 255) >= (y_f != 255)).all()


@pytest.mark.parametrize(("absent", "labelled"), [("farthest", 0.0), ("masked", 1.0)])
def test_a_source_image_of_one_class_labels_nothing(absent, labelled, make_segmentor, make_plan):
    module = BiCL(make_segmentor(), make_plan(), BiCLOptions(transfer_absent=absent))
    f_s, f_t = torch.rand(2, 1, 8, 4, 8, generator=torch.Generator().manual_seed(2))
    none = torch.full((1, 4, 8), 255, dtype=torch.uint8)
    module.contrast(f_s, torch.full_like(none, 7), f_t, none, none > 0)
    assert module.diagnostics["labelled/hybrid"] == labelled
    assert BiCL(make_segmentor(), make_plan(), BiCLOptions()).options.transfer_absent == "farthest"


def test_forward_of_a_pair_is_backward_of_the_swapped_one(make_segmentor, make_plan, make_batch):
    module = BiCL(make_segmentor(), make_plan(), BiCLOptions(until="backward"))
    g = torch.Generator().manual_seed(1)
    f, h = torch.randn(2, 6, 4, 8, generator=g), torch.randn(2, 6, 4, 8, generator=g)
    y, z = (make_batch(seed)["source"].label[:, ::8, ::8] for seed in range(2))
    everywhere = torch.ones_like(y, dtype=torch.bool)
    forward, backward = module.contrast(f, y, h, z, everywhere)
    swapped_forward, swapped_backward = module.contrast(h, z, f, y, everywhere)
    torch.testing.assert_close(forward.value, swapped_backward.value)
    torch.testing.assert_close(backward.value, swapped_forward.value)


def test_nothing_shared_and_nothing_labelled_is_no_nan(make_segmentor, make_plan, make_batch):
    batch = make_batch()
    batch["source"].label[:] = 2
    for label in (5, 255):
        batch["target"].pseudo = torch.full_like(batch["source"].label, label)
        module = run_once(half_released(make_segmentor(), make_plan(), until="backward", entropy_weight=0.4), batch)
        assert all(torch.isfinite(p).all() for p in module.parameters())
        assert module.recorded["train/contrast/forward"] == module.recorded["train/contrast/backward"] == 0.0


def test_what_is_logged(make_segmentor, make_plan, labelled_batches):
    recorded = run_once(
        BiCL(make_segmentor(), make_plan(), BiCLOptions(dynamic_threshold=0.06)), labelled_batches[0]
    ).recorded
    y_f = labelled_batches[0]["target"].pseudo
    cells = (y_f[:, 2::4, 2::4] != 255).float().mean().item()
    assert recorded["diagnostic/labelled/static"] == pytest.approx(cells)  # at the features' size, as the hybrid ones
    assert cells < recorded["diagnostic/labelled/hybrid"] <= 1
    assert math.isfinite(recorded["diagnostic/calibration/road"])


def test_hybrid_labels_are_never_fewer_in_the_log(make_segmentor, make_plan, labelled_batches):
    """Labels that lie between the cells' centres are in neither share."""
    batch = labelled_batches[0]
    batch["target"].pseudo = torch.full_like(batch["source"].label, 3)
    batch["target"].pseudo[:, 2::4, 2::4] = 255
    recorded = run_once(BiCL(make_segmentor(), make_plan(), BiCLOptions(until="backward")), batch).recorded
    assert recorded["diagnostic/labelled/static"] == recorded["diagnostic/labelled/hybrid"] == 0


def test_padding_and_margins_are_labelled_neither_way(make_segmentor, make_plan, labelled_batches):
    batch, shown = labelled_batches[0], {}
    batch["target"].valid[:, 16:] = False
    module = half_released(make_segmentor(), make_plan(), feature="logits", temperature=0.5, dynamic_threshold=0.06)
    module.log_images = lambda **tensors: shown.update(tensors)
    run_once(module, batch)
    for name in ("pseudo_label", "hybrid_label"):
        assert (shown[name][:, :16] != 255).any()
        assert (shown[name][:, 16:] == 255).all()


@pytest.mark.parametrize("feature", ["fused", "logits", "backbone", "projection"])
def test_every_feature_can_be_compared(feature, make_segmentor, make_plan, labelled_batches):
    segmentor = make_segmentor()
    fused, last = segmentor.heads["main"].width, segmentor.encoder.channels[-1]
    module = run_once(half_released(segmentor, make_plan(), warmup=0.0, feature=feature, width=5), labelled_batches[0])
    width = {"fused": fused, "logits": 19, "backbone": last, "projection": 5}[feature]
    assert module.calibration.value.shape == (19, width)
    assert module.calibration.value.abs().sum() > 0
    assert module.recorded["train/contrast/backward"] > 0


def test_own_stem(make_segmentor, make_plan, labelled_batches):
    first = copy.deepcopy(make_segmentor().encoder.stem.conv.weight)
    module = half_released(make_segmentor(), make_plan(steps=4), stem="own", warmup=0.0)
    fit(module, labelled_batches)
    own, shared = module.source_stem.stage[0].conv.weight, module.segmentor.encoder.stem.conv.weight
    assert not torch.equal(own, shared)
    assert not torch.equal(shared, first)
    assert module.segmentor.encoder.get_submodule("stem") is not module.source_stem.stage[0]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_warm_up_trains_the_plain_stem(steps, make_segmentor, make_plan, make_batch):
    """What is validated and saved has the stem that its trunk was trained with; the source's starts as a copy of it."""
    module = half_released(make_segmentor(), make_plan(), stem="own", warmup=0.5)  # of 4 steps
    control = SourceOnly(make_segmentor(), make_plan(), SourceOnlyOptions())
    first = copy.deepcopy(module.source_stem.stage.state_dict())
    batches = [make_batch(seed) for seed in range(steps)]
    fit(module, batches)
    fit(control, batches)
    for name, tensor in control.segmentor.state_dict().items():
        assert torch.equal(module.segmentor.state_dict()[name], tensor), name
    assert not torch.equal(first["0.conv.weight"], module.segmentor.encoder.stem.conv.weight)
    names = module.segmentor.encoder.first_stage
    for i, name in enumerate(names):
        for key, plain in module.segmentor.encoder.get_submodule(name).state_dict().items():
            expected = plain if steps == 2 else first[f"{i}.{key}"]
            assert torch.equal(module.source_stem.stage[i].state_dict()[key], expected), key


def test_own_stem_needs_an_encoder_that_can_be_cut(make_segmentor, make_plan):
    segmentor = make_segmentor()
    segmentor.encoder = TimmEncoder("test_convnext")
    with pytest.raises(UserError, match=r"method\.stem=shared"):
        half_released(segmentor, make_plan(), stem="own", feature="backbone")


# ---------------------------------------------------------------------- rounds


@pytest.mark.parametrize(("steps", "warmup", "count"), [(40, 0.25, 10), (7, 0.0, 3), (5, 0.5, 10), (4, 1.0, 3)])
def test_schedule(steps, warmup, count):
    schedule = RoundSchedule(steps, warmup, count)
    found = [schedule.at(step) for step in range(steps + 2)]
    assert found[: schedule.first] == [None] * round(warmup * steps)
    assert found[steps:] == [None, None]
    numbers = found[schedule.first : steps]
    assert numbers == sorted(numbers)
    assert not numbers or numbers[0] == 0
    if len(numbers) >= count:
        assert sorted(set(numbers)) == list(range(count))
        lengths = [numbers.count(number) for number in range(count)]
        assert max(lengths) - min(lengths) <= 1
    begins = {number: found.index(number) for number in numbers}
    assert [schedule.span(step) for step in range(schedule.first, steps)] == [(n, begins[n]) for n in numbers]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("source", "target")):
        streets_tree(tmp_path / name, count=5 + number)

    def make(steps=6):
        def domain(name):
            return DomainSettings("streets", str(tmp_path / name))

        settings = DataSettings(crop=[16, 24], val_batch=4, source=domain("source"), target=domain("target"))
        settings.rare_class.enabled = False
        return UDADataModule(settings, steps, seed=1)

    return make


def train(module, data, folder, resume=None, max_steps=6):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=max_steps, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[Checkpoints(folder / "checkpoints", 1, {})],
        use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return trainer


def bicl(make_segmentor, make_plan, **options):
    return BiCL(make_segmentor(), make_plan(steps=6), BiCLOptions(**{"warmup": 1 / 3, "rounds": 2} | options))


class Sure(Inference):
    """As sure as a trained network."""

    def __call__(self, network: Segmentor, image: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        return 40 * super().__call__(network, image, size)


def test_a_round_labels_what_is_surest(make_segmentor, make_plan, data, tmp_path):
    """Against sorting in numpy: a tenth of each predicted class over all images, and a tenth of each image."""
    module = bicl(make_segmentor, make_plan, class_share=0.2, image_share=0.1)
    train(module, data(), tmp_path / "run", max_steps=2)  # stops where the first round would begin
    assert not (tmp_path / "run/pseudo_labels").exists()
    train(module, data(), tmp_path / "run", max_steps=1)
    module.infer = Sure()
    label_target(module, module.rounds.store, 0, module.options)
    labels = np.load(tmp_path / "run/pseudo_labels/round_000.npy")
    with torch.no_grad():
        images = torch.cat([batch.image for batch in module.trainer.datamodule.target_images([[0, 1, 2], [3, 4, 5]])])
        probability = module.infer(module.segmentor.eval(), images / 255.0).double().softmax(1).numpy()
    confidence, predicted = probability.max(1), probability.argmax(1)
    expected = np.full(predicted.shape, 255)
    for c in range(19):
        values = np.sort(confidence[predicted == c])[::-1]
        if len(values):
            expected[(predicted == c) & (confidence >= values[math.ceil(0.2 * len(values)) - 1])] = c
    for image in range(6):
        values = np.sort(confidence[image].ravel())[::-1]
        sure = confidence[image] >= values[math.ceil(0.1 * values.size) - 1]
        expected[image][sure] = predicted[image][sure]
    # Confidences are compared in fine steps: a pixel right at a threshold may be on either side.
    assert (labels == expected).mean() > 0.98
    assert 0.1 < (labels != 255).mean() < 0.4


def equal_states(one, other):
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_resumed_training_is_the_same_bit_for_bit(make_segmentor, make_plan, data, tmp_path):
    """Through the warm-up and both rounds, stopped in the middle of each; calibration and labels are part of it."""
    whole = bicl(make_segmentor, make_plan)
    train(whole, data(), tmp_path / "whole")
    for stop in (2, 3, 5):
        folder = tmp_path / f"stopped{stop}"
        # The run goes one step further than its last checkpoint.
        train(bicl(make_segmentor, make_plan), data(), folder, max_steps=stop + 1)
        again = bicl(make_segmentor, make_plan)
        train(again, data(), folder, resume=folder / "checkpoints/previous.ckpt")
        equal_states(whole, again)
    assert whole.calibration.value.abs().sum() > 0
    rounds_made = sorted(p.name for p in (tmp_path / "whole/pseudo_labels").iterdir())
    assert rounds_made == ["round_000.crc32", "round_000.npy", "round_001.crc32", "round_001.npy"]


@pytest.mark.parametrize(("step", "loss"), [(3, "none"), (3, "gone"), (3, "broken"), (4, "gone"), (4, "broken")])
def test_resumed_in_another_folder(step, loss, make_segmentor, make_plan, data, tmp_path, caplog):
    """Rounds begin at steps 2 and 4. What the round began with is known at its first step alone, and said otherwise."""
    whole = bicl(make_segmentor, make_plan)
    train(whole, data(), tmp_path / "whole")
    train(bicl(make_segmentor, make_plan), data(), tmp_path / "stopped", max_steps=step + 1)
    stored = tmp_path / f"stopped/pseudo_labels/round_00{step - 3}.npy"
    if loss == "gone":
        stored.unlink()
    elif loss == "broken":
        stored.write_bytes(b"nothing")
    caplog.clear()
    again = bicl(make_segmentor, make_plan)
    train(again, data(), tmp_path / "moved", resume=tmp_path / "stopped/checkpoints/previous.ckpt")
    said = [r.getMessage() for r in caplog.records if r.name == rounds.__name__ and r.levelname == "WARNING"]
    if step == 3 and loss != "none":
        assert [line[: line.index(" in ")] for line in said] == ["round 1 has no readable labels"]
        assert "with the weights of step 3" in said[0]
        assert again.trainer.global_step == 6
    else:
        assert not said
        equal_states(whole, again)


def test_the_classic_loop_begins_the_same_rounds(make_segmentor, make_plan, data, tmp_path):
    module, read = bicl(make_segmentor, make_plan), data()
    read.setup("fit")
    trainer = PlainTrainer(tmp_path, 6, read)
    loop = ClassicLoop(module, trainer, iter(read.train_dataloader()), torch.device("cpu"), io.StringIO())
    for made in (0, 1, 1, 2, 2, 2):  # rounds begin at steps 2 and 4
        loop.step()
        assert len(list(tmp_path.glob("pseudo_labels/*.npy"))) == made


def test_a_broken_file_is_made_anew(make_segmentor, make_plan, data, tmp_path):
    whole = bicl(make_segmentor, make_plan)
    train(whole, data(), tmp_path / "whole")
    train(bicl(make_segmentor, make_plan), data(), tmp_path / "stopped", max_steps=5)
    labels = tmp_path / "stopped/pseudo_labels/round_001.npy"
    content = labels.read_bytes()
    labels.write_bytes(b"nothing")
    again = bicl(make_segmentor, make_plan)
    train(again, data(), tmp_path / "stopped", resume=tmp_path / "stopped/checkpoints/previous.ckpt")
    assert labels.read_bytes() == content
    equal_states(whole, again)


@pytest.mark.parametrize(("steps", "made"), [(6, []), (12, [0, 1])])
def test_labels_of_other_rounds_are_not_taken_for_these(
    steps, made, make_segmentor, make_plan, data, tmp_path, caplog, monkeypatch
):
    """At step 5 of 6 a run is in its second round; of 12 it would be in the first again, whose labels are old."""
    train(bicl(make_segmentor, make_plan), data(), tmp_path, max_steps=5)
    found = []
    make = rounds.label_target
    monkeypatch.setattr(rounds, "label_target", lambda *given: (found.append(given[2]), make(*given))[1])
    again = BiCL(make_segmentor(), make_plan(steps=steps), BiCLOptions(warmup=1 / 3, rounds=2))
    train(again, data(steps), tmp_path, resume=tmp_path / "checkpoints/last.ckpt", max_steps=steps)
    assert found == made
    assert ("resumed with 2 rounds in 12 steps instead of 2 in 6" in caplog.text) == bool(made)


def test_a_resumed_run_has_the_rounds_that_it_had(make_segmentor, make_plan):
    """However many images a step reads now: how many rounds there are time for was counted at its start."""
    labels = bicl(make_segmentor, make_plan, rounds=4, round_passes=1).rounds
    assert labels.possible(10, per_step=5).rounds == 2  # 20 images for the 10 of the target, once each
    labels.schedule = labels.possible(10, per_step=5)
    resumed = bicl(make_segmentor, make_plan, rounds=4, round_passes=1).rounds
    checkpoint = {}
    labels.on_save_checkpoint(None, None, checkpoint)
    assert checkpoint == {"rounds": {"steps": 6, "warmup": 1 / 3, "rounds": 2}}  # as in older checkpoints
    resumed.on_load_checkpoint(None, None, checkpoint)
    assert resumed.possible(10, per_step=1).rounds == 2


def test_statistics_of_all_ranks_are_not_waited_for(make_segmentor, make_plan, data, tmp_path):
    module = bicl(make_segmentor, make_plan)
    module.plan.teacher.batch_norm = "train"
    module.segmentor = nn.SyncBatchNorm.convert_sync_batchnorm(module.segmentor)
    with pytest.raises(UserError, match=r"sync_batchnorm=true: .*: add teacher\.batch_norm=eval"):
        train(module, data(), tmp_path)


def test_interrupted_labelling_goes_on(make_segmentor, make_plan, data, tmp_path, monkeypatch):
    whole = bicl(make_segmentor, make_plan)
    train(whole, data(), tmp_path / "whole")
    seen, certainty = [], static_labels.certainty

    def broken(logits):
        seen.append(len(logits))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return certainty(logits)

    monkeypatch.setattr(static_labels, "certainty", broken)
    module = bicl(make_segmentor, make_plan)
    with pytest.raises(BaseException):  # noqa: B017, PT011 -- Lightning turns the interrupt into its own
        train(module, data(), tmp_path / "broken")
    assert (tmp_path / "broken/pseudo_labels/round_000/done.npy").exists()
    saved = torch.load(tmp_path / "broken/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2  # the step before the round was saved before it
    again = bicl(make_segmentor, make_plan)
    train(again, data(), tmp_path / "broken", resume=tmp_path / "broken/checkpoints/last.ckpt")
    assert seen == [4, 2, 2, 4, 2]  # the first batch of round 0 was not labelled again
    equal_states(whole, again)
