from __future__ import annotations

import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from PIL import Image
from torch.utils.data import DataLoader
from trees import camvid_tree, streets_tree

from uda_seg.data import loading, stream
from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.domains import open_domain
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.loading import StepSampler, bound_workers, choose_workers, cores_of_rank
from uda_seg.data.parallel import cores
from uda_seg.data.readers import resize_of
from uda_seg.data.settings import DataSettings, DomainSettings, RareClassSettings
from uda_seg.data.transforms import CropRule, Resize
from uda_seg.errors import UserError
from uda_seg.errors.known import user_error

STEPS = 6


@pytest.fixture
def settings(tmp_path):
    def domain(name: str, split: str = "train") -> DomainSettings:
        return DomainSettings("streets", str(tmp_path / name), split=split)

    for number, name in enumerate(("source", "target", "val")):
        streets_tree(tmp_path / name, count=5 + number, ids=[0, 1, 2, 13, 255])
    return DataSettings(
        crop=[16, 24],
        source_batch=3,
        target_batch=2,
        val_batch=2,
        source=domain("source"),
        target=domain("target"),
        validation={"target": domain("val", "val")},
    )


def make(settings, trainer=None, **options):
    module = UDADataModule(settings, STEPS, seed=1, **options)
    module.trainer = trainer
    module.prepare_data()
    module.setup()
    return module


def test_a_domain_says_how_it_is_resized():
    domain = DomainSettings(size=[4, 8], keep_ratio=False, depth_resize="bilinear", image_resize="pil_bicubic")
    assert resize_of(domain) == Resize((4, 8), keep_ratio=False, depth="bilinear", filter="pil_bicubic")
    assert resize_of(DomainSettings(size=[4, 8])) == Resize((4, 8))


def test_only_source_crops_are_drawn_anew(settings):
    settings.crop_max_ratio, settings.crop_tries = 0.6, 11
    module = make(settings)
    assert module._streams["source"].rule == CropRule((16, 24), 0.6, flip=True, tries=11)
    assert module._streams["target"].rule.max_ratio == 1.0


def rank(number, world, step=0):
    return SimpleNamespace(
        global_rank=number, world_size=world, num_devices=world, global_step=step, state=SimpleNamespace(fn="fit")
    )


def tensors(batches):
    return [
        tensor
        for batch in batches
        for name in sorted(batch)
        for tensor in (batch[name].image, batch[name].label, batch[name].index, batch[name].valid)
        if tensor is not None
    ]


def assert_equal(first, second):
    first, second = tensors(first), tensors(second)
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_item_is_a_whole_step(settings):
    batches = list(make(settings).train_dataloader())
    assert len(batches) == STEPS
    source, target = batches[0]["source"], batches[0]["target"]
    assert source.image.shape == (3, 3, 16, 24)
    assert source.label.shape == (3, 16, 24)
    assert torch.equal(source.image[:, 0], source.label)  # the trees write the label into the red channel
    assert target.image.shape == (2, 3, 16, 24)
    assert target.label is None
    assert target.valid.all()
    assert not torch.equal(batches[0]["source"].image, batches[1]["source"].image)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_workers_and_caches_change_nothing(settings, cache):
    alone = list(make(settings).train_dataloader())
    settings.workers, settings.cache = 2, cache
    assert_equal(alone, list(make(settings).train_dataloader()))


def test_a_resumed_run_reads_what_the_whole_run_would_have_read(settings):
    whole = list(make(settings).train_dataloader())
    loader = make(settings, rank(0, 1, step=4)).train_dataloader()
    assert len(loader) == STEPS  # Lightning counts the steps before the resume too
    assert_equal(whole[4:], list(loader))


def test_two_ranks_read_together_what_one_process_with_their_batches_reads(settings):
    settings.rare_class.enabled = False
    ranks = [list(make(settings, rank(r, 2)).train_dataloader()) for r in (0, 1)]
    settings.source_batch, settings.target_batch = 6, 4
    joined = list(make(settings).train_dataloader())
    for step in range(STEPS):
        for name in ("source", "target"):
            parts = torch.stack([r[step][name].image for r in ranks], dim=1).flatten(0, 1)
            assert torch.equal(parts, joined[step][name].image)


def test_target_images_come_once_a_pass(settings):
    indices = torch.cat([b["target"].index for b in make(settings).train_dataloader()])
    assert sorted(indices[:6].tolist()) == sorted(indices[6:12].tolist()) == list(range(6))


def test_target_labels_are_never_opened(settings, tmp_path, monkeypatch):
    for file in (tmp_path / "target/label").iterdir():
        file.write_bytes(b"not a label")
    opened, read_label = [], SegmentationDataset.read_label
    monkeypatch.setattr(
        SegmentationDataset, "read_label", lambda self, i: opened.append(self.root.name) or read_label(self, i)
    )
    whole = list(make(settings).train_dataloader())
    assert set(opened) == {"source", "val"}
    shutil.rmtree(tmp_path / "target/label")
    assert_equal(whole, list(make(settings).train_dataloader()))


def test_without_a_target_there_is_no_target_key(settings):
    assert set(next(iter(make(settings, needs_target=False).train_dataloader()))) == {"source"}
    settings.target = None
    assert set(next(iter(make(settings, needs_target=False).train_dataloader()))) == {"source"}
    with pytest.raises(UserError, match=r"the method needs target images but data=streets sets no data\.target"):
        make(settings)


def test_the_oracle_trains_on_the_labelled_target(settings):
    batches = list(make(settings, target_labels=True).train_dataloader())
    assert set(batches[0]) == {"source"}
    assert torch.equal(batches[0]["source"].image[:, 0], batches[0]["source"].label)
    assert max(b["source"].index.max() for b in batches) == 5  # the source has images 0 to 4 alone


def test_every_position_has_a_crop_of_its_own(settings):
    settings.source.count, settings.source_batch, settings.rare_class.enabled = 1, 8, False
    images = next(iter(make(settings, needs_target=False).train_dataloader()))["source"].image
    assert len({image.numpy().tobytes() for image in images}) >= 7  # of about 800 crops


def test_rare_classes_are_drawn_and_sought_in_one_decoded_image(settings, tmp_path, monkeypatch):
    settings.cache, settings.target = "none", None
    settings.rare_class = RareClassSettings(enabled=True, min_pixels=0, min_crop_pixels=10**6)
    module = make(settings, needs_target=False)
    reads, read = [], SegmentationDataset.read
    monkeypatch.setattr(SegmentationDataset, "read", lambda self, i: reads.append(i) or read(self, i))
    batch = module.train_dataloader().dataset[0]
    assert reads == batch["source"].index.tolist()


def test_margins_follow_the_crop_and_the_flip(settings):
    settings.target.margins, settings.crop = [2, 10, 4, 8], [32, 48]
    for batch in make(settings).train_dataloader():
        for valid in batch["target"].valid:
            mirrored = not valid[5, 5]
            expected = torch.zeros(32, 48, dtype=torch.bool)
            expected[2:22, 4:40] = True
            assert torch.equal(valid, expected.flip(1) if mirrored else expected)
        assert batch["source"].valid.all()
    assert all(batch["target"].valid.all() for batch in make(settings, margins=False).train_dataloader())
    settings.target.margins = [1, 2]
    with pytest.raises(UserError, match=r"data.target.margins=\[1, 2\]: give \[top, bottom, left, right\]"):
        make(settings)


@pytest.mark.parametrize("margins", [[0, 50, 0, 0], [0, 0, 0, 70], [40, 0, 0, 0], [10, 33, 10, 49]])
def test_margins_larger_than_the_image_leave_nothing(settings, margins, caplog):
    settings.target.margins = margins
    assert not next(iter(make(settings).train_dataloader()))["target"].valid.any()
    assert "leave no pixel of an image" in caplog.text


def test_margins_shrink_with_the_image(settings):
    settings.target.margins, settings.target.size, settings.crop = [2, 10, 4, 8], [16, 24], [16, 24]
    settings.flip = False
    valid = next(iter(make(settings).train_dataloader()))["target"].valid[0]
    expected = torch.zeros(16, 24, dtype=torch.bool)
    expected[1:11, 2:20] = True
    assert torch.equal(valid, expected)


def test_validation_keeps_the_labels_size(settings):
    settings.validation["target"].size = [16, 24]
    batches = list(make(settings).val_dataloader()["target"])
    assert [len(b.index) for b in batches] == [2, 2, 2, 1]
    assert batches[0].image.shape == (2, 3, 16, 24)
    assert batches[0].label.shape == (2, 32, 48)


def test_ranks_share_validation_without_repeating_an_image(settings):
    seen = [
        [i for batch in make(settings, rank(r, 3)).val_dataloader()["target"] for i in batch.index.tolist()]
        for r in range(3)
    ]
    assert seen == [[0, 3, 6], [1, 4], [2, 5]]


def test_evaluation_alone_needs_no_training_data(settings, tmp_path):
    shutil.rmtree(tmp_path / "source")
    module = UDADataModule(settings, STEPS, seed=0)
    module.setup("validate")
    assert list(module.val_dataloader()) == list(module.validation_names) == ["target"]


def test_batches_for_statistics_are_those_of_training(settings):
    module = make(settings)
    trained = [batch["target"] for batch in module.train_dataloader()][:3]
    assert_equal([{"t": b} for b in trained], [{"t": b} for b in module.target_batches(3)])


def test_a_target_read_between_the_steps_is_not_read_in_them(settings, monkeypatch):
    whole, module = make(settings), make(settings, target_in_step=False)
    expected = [{"t": b} for b in whole.target_batches(2)]
    opened, read = [], SegmentationDataset.read
    monkeypatch.setattr(SegmentationDataset, "read", lambda self, i: opened.append(self.root.name) or read(self, i))
    assert all(set(batch) == {"source"} for batch in module.train_dataloader())
    assert set(opened) == {"source"}
    assert_equal(expected, [{"t": b} for b in module.target_batches(2)])


def test_counts_of_images(settings):
    assert make(settings).source_images_per_step == 3
    assert make(settings).images_per_step == 5
    assert make(settings, rank(0, 2)).images_per_step == 10
    assert make(settings, needs_target=False).images_per_step == 3
    assert make(settings, target_in_step=False).images_per_step == 3
    settings.target_batch = None
    assert make(settings).images_per_step == 6


def test_a_crop_larger_than_the_images_is_told(settings):
    settings.target.size = [12, 48]
    with pytest.raises(UserError, match=r"data.crop=\[16,24\] is larger than the images of data.target, .* \[12, 18\]"):
        make(settings)


@pytest.mark.parametrize("cache", ["none", "auto"])
@pytest.mark.parametrize("turned", [0, 3])
def test_single_images_smaller_than_a_crop_are_padded_and_told_wherever_they_are(
    settings, tmp_path, caplog, turned, cache
):
    path = tmp_path / f"target/image/{turned:06d}.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    settings.target.size, settings.cache = [16, 24], cache
    with caplog.at_level("WARNING"):
        module = make(settings)
    assert caplog.text.count("data.target: 1 of 6 images looked at are smaller than data.crop=[16,24]") == 1
    assert f"the first is {path}, 16x11 (height x width)" in caplog.text
    for batch in module.train_dataloader():
        for image, valid in zip(batch["target"].index, batch["target"].valid, strict=True):
            assert bool(valid.all()) == (int(image) != turned)


def test_a_photograph_that_its_exif_turns_is_as_high_as_it_is_shown(settings, tmp_path, caplog):
    path = tmp_path / "target/image/000003.png"
    exif = Image.Exif()
    exif[274] = 6
    image = Image.open(path).transpose(Image.Transpose.ROTATE_90)
    image.save(path, exif=exif)
    settings.target.size = [16, 24]
    with caplog.at_level("WARNING"):
        make(settings)
    assert "smaller than data.crop" not in caplog.text


def test_unknown_cache_is_told(settings):
    settings.cache = "ram"
    with pytest.raises(UserError, match=r"data\.cache=ram is unknown; choose one of auto, memory, disk, none"):
        make(settings)


def test_a_damaged_file_reaches_the_person_as_one_line(settings, tmp_path):
    settings.workers, settings.cache = 1, "none"
    module = make(settings)
    for file in (tmp_path / "target/image").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        list(module.train_dataloader())
    assert str(user_error(error.value)).endswith("is empty: copy or unpack the file again")
    assert "\n" not in str(user_error(error.value))


def test_small_sets_are_kept_in_memory(settings, monkeypatch):
    assert make(settings).train_dataloader().num_workers == 0
    monkeypatch.setattr(stream, "AUTO_CACHE_BYTES", 1000)
    assert make(settings).train_dataloader().num_workers > 0
    assert [choose_workers(True, 64), choose_workers(False, 2), choose_workers(False, 64)] == [0, 1, 4]


@pytest.mark.parametrize("small", [[0], [1, 2, 3, 4, 5]])
def test_whether_a_set_is_small_is_judged_by_more_than_its_first_image(settings, tmp_path, monkeypatch, small):
    for index in small:
        path = tmp_path / f"target/image/{index:06d}.png"
        Image.open(path).resize((24, 16)).save(path)
    areas = [16 * 24 if index in small else 32 * 48 for index in range(6)]
    for limit, kept in ((3 * sum(areas), True), (3 * sum(areas) - 1, False)):
        monkeypatch.setattr(stream, "AUTO_CACHE_BYTES", limit)
        data = open_domain(settings.target, settings, CITYSCAPES, "data.target", labeled=False)
        assert stream.SampleReader(data, None, cache="auto").in_memory == kept


def test_a_validation_label_counts_with_its_size_on_disk(settings, monkeypatch):
    data = open_domain(settings.source, settings, CITYSCAPES, "data.source", labeled=True)
    for limit, kept in ((5 * (3 * 16 * 24 + 32 * 48), True), (5 * (3 * 16 * 24 + 32 * 48) - 1, False)):
        monkeypatch.setattr(stream, "AUTO_CACHE_BYTES", limit)
        reader = stream.SampleReader(data, Resize((16, 24)), cache="auto", resize_label=False)
        assert reader.in_memory == kept


def test_ranks_share_the_cores_of_their_own_machine(settings, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(32)))  # what taskset left
    monkeypatch.setattr("uda_seg.data.parallel.quota", lambda: math.inf)  # whatever this machine's container is granted
    assert cores() == cores_of_rank(None) == 32
    eight = pl.Trainer(accelerator="cpu", devices=8, num_nodes=8, strategy="ddp", logger=False, barebones=True)
    assert (eight.world_size, cores_of_rank(eight)) == (64, 4)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert cores_of_rank(eight) == 4  # the launcher's ranks, all in one task
    eight.strategy.cluster_environment = SLURMEnvironment(auto_requeue=False)
    assert cores_of_rank(eight) == 16
    settings.cache = "none"
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    data = make(settings)
    for machines, workers in ((8, 3), (1, 1)):
        data.trainer = rank(0, 64)
        data.trainer.num_devices = 64 // machines
        assert data.train_dataloader().num_workers == workers


def test_step_sampler():
    sampler = StepSampler(3, 6)
    assert (list(sampler), len(sampler)) == ([3, 4, 5], 6)


class _Records(pl.LightningModule):
    """Steps by hand and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append([index, *batch["source"].index.tolist(), *batch["target"].index.tolist()])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch["source"].image.float().mean().view(1, 1)).sum())
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_lightning_resumes_in_the_middle_of_the_run(settings, tmp_path, recwarn):
    def trainer(steps):
        return pl.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def data():
        return UDADataModule(settings, STEPS, seed=1)

    whole, half, rest = _Records(), _Records(), _Records()
    trainer(STEPS).fit(whole, datamodule=data())
    first = trainer(4)
    first.fit(half, datamodule=data())
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = trainer(STEPS)
    second.fit(rest, datamodule=data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert half.seen + rest.seen == whole.seen
    assert len(whole.seen) == second.global_step == STEPS
    assert not [w for w in recwarn if "not resumable" in str(w.message)]


camvid = pytest.mark.skipif("UDA_SEG_CAMVID" not in os.environ, reason="UDA_SEG_CAMVID names no copy of CamVid")


@camvid
def test_camvid_itself():
    root = os.environ["UDA_SEG_CAMVID"]
    settings = DataSettings(
        classes="camvid",
        eval_classes="11",
        crop=[128, 128],
        source=DomainSettings("camvid", root, count=16, size=[180, 240]),
        validation={"camvid": DomainSettings("camvid", root, split="val", size=[180, 240])},
    )
    module = make(settings, needs_target=False)
    loader = module.val_dataloader()["camvid"]
    assert isinstance(loader, DataLoader)
    assert len(loader.dataset) == 101
    first = next(iter(loader))
    assert first.image.shape[2:] == (180, 240)
    assert first.label.shape[1:] == (360, 480)
    assert set(np.unique(first.label)) <= {*range(11), 255}
    settings.source.count, settings.rare_class.enabled = None, False
    assert len(make(settings, needs_target=False).train_dataloader().dataset.streams["source"].samples) == 367


def test_streets_source_for_camvid_is_mapped_to_eleven_classes(settings, tmp_path):
    camvid_tree(tmp_path / "camvid", size=(36, 48))
    settings.classes, settings.eval_classes = "camvid", "11"
    settings.target = DomainSettings("camvid", str(tmp_path / "camvid"))
    batch = next(iter(make(settings).train_dataloader()))
    assert set(batch["source"].label.unique().tolist()) <= {3, 4, 1, 8, 255}
    mapped = {0: 3, 1: 4, 2: 1, 13: 8, 255: 255}
    expected = batch["source"].image[:, 0].clone().apply_(lambda value: mapped[value])
    assert torch.equal(expected, batch["source"].label)


def test_loader_processes_are_bounded_by_cores_and_by_what_there_is_to_load(monkeypatch, caplog):
    monkeypatch.setattr(loading, "cores", lambda: 3)
    loading._tell_bound.cache_clear()
    assert [bound_workers(asked, 100) for asked in (0, 4, 6, 1000, 1000)] == [0, 4, 6, 6, 6]
    assert [bound_workers(1000, items) for items in (0, 5)] == [0, 5]
    assert caplog.text.count("data.workers=1000: 6 are started, for 3 cores and 100 items to load") == 1
