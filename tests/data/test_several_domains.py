"""Several sources, several targets and labelled target images, on trees of a few kilobytes."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trees import camvid_tree, save, streets_tree

from uda_seg.data.datamodule import UDADataModule
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.sampling import DomainOrder, quotas
from uda_seg.data.settings import DataSettings, DomainSettings, RareClassSettings
from uda_seg.errors import UserError

STEPS = 8
IMAGES = {"source": 5, "second": 3, "third": 4, "target": 6, "other": 4, "val": 2}
ALL = [0, 1, 2, 13, 255]
HAS = {"second": [5, 6, 255], "third": [7, 8], "other": [9, 255]}


def domain(tmp_path, name, **options):
    return DomainSettings("streets", str(tmp_path / name), **options)


@pytest.fixture
def settings(tmp_path):
    """Two sources and two targets whose labels, and so red channels, have no class in common."""
    for name, count in IMAGES.items():
        streets_tree(tmp_path / name, count, ids=HAS.get(name, ALL))
    return DataSettings(
        crop=[16, 24],
        source_batch=3,
        target_batch=2,
        source=domain(tmp_path, "source"),
        more_sources={"second": domain(tmp_path, "second", share=0.5)},
        target=domain(tmp_path, "target"),
        more_targets={"other": domain(tmp_path, "other")},
        validation={"target": domain(tmp_path, "val", split="val")},
        workers=0,
    )


def make(settings, rank=0, world=1, step=0, seed=1, **options):
    module = UDADataModule(settings, STEPS, seed=seed, **options)
    module.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, num_devices=1, global_step=step, state=SimpleNamespace(fn="fit")
    )
    module.setup()
    return module


def batches(settings, *place, **options):
    return list(make(settings, *place, **options).train_dataloader())


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            for field in ("image", "index", "window"):
                assert torch.equal(getattr(one[name], field), getattr(other[name], field))


# ---------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([1.0, 1.0], (1, 1)), ([0.5, 0.3, 0.2], (5, 3, 2)), ([2, 1], (2, 1)), ([0.1, 0.2], (1, 2)), ([1.0], (1,))],
)
def test_shares_become_the_smallest_whole_numbers(shares, expected):
    assert quotas(shares) == expected


def test_shares_without_a_short_period_are_rounded_and_none_is_lost():
    first, second = quotas([24966, 9401])
    assert first + second == pytest.approx(10_000, abs=1)
    assert first / second == pytest.approx(24966 / 9401, rel=1e-3)
    assert quotas([1.0, 1e-9]) == (10_000, 1)


@given(parts=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 2**32), periods=st.integers(1, 4))
def test_every_period_has_its_shares_and_each_domain_counts_its_own_positions(parts, seed, periods):
    order, seen = DomainOrder(tuple(parts), seed, 0), [0] * len(parts)
    for position in range(periods * sum(parts)):
        number, own = order.place(position)
        assert own == seen[number]  # as one would count who walks through all positions
        seen[number] += 1
        if (position + 1) % sum(parts) == 0:
            assert seen == [(position + 1) // sum(parts) * part for part in parts]


def test_the_domains_of_a_period_come_in_an_order_that_seed_and_number_decide():
    def drawn(seed, first):
        order = DomainOrder((8, 8), seed, 0)
        return tuple(order.place(first + p)[0] for p in range(16))

    assert len({drawn(seed, first) for seed in (0, 1) for first in (0, 16)}) == 4
    assert drawn(3, 0) == drawn(3, 0)


# ---------------------------------------------------------------------- the stream


def test_sources_and_targets_share_a_batch_as_stated(settings):
    read = batches(settings)
    source = torch.cat([b["source"].index for b in read])
    assert [(source < 5).sum(), (source >= 5).sum()] == [16, 8]  # 1 to 0.5 of 24
    assert sorted(source[source >= 5].tolist()[:6]) == [5, 5, 6, 6, 7, 7]
    for batch in read:
        for image, label, index in zip(
            batch["source"].image, batch["source"].label, batch["source"].index, strict=True
        ):
            assert torch.equal(image[0], label)  # red is the label
            assert set(label.unique().tolist()) <= set(HAS["second"] if index >= 5 else ALL)
        for image, index in zip(batch["target"].image, batch["target"].index, strict=True):
            assert set(image[0].unique().tolist()) <= set(HAS["other"] if index >= 6 else ALL)
        assert batch["target"].label is None


def test_each_domain_passes_over_its_images(settings):
    target = torch.cat([b["target"].index for b in batches(settings)])
    first, other = target[target < 6].tolist(), target[target >= 6].tolist()
    assert len(first) == len(other) == 8
    assert sorted(first[:6]) == list(range(6))
    assert sorted(other[:4]) == sorted(other[4:]) == [6, 7, 8, 9]


def test_the_first_source_is_read_as_if_it_were_alone(settings):
    joint = [pair for b in batches(settings) for pair in zip(b["source"].index, b["source"].image, strict=True)]
    settings.more_sources, settings.source_batch = {}, 2  # two of three positions are its own
    alone = [pair for b in batches(settings) for pair in zip(b["source"].index, b["source"].image, strict=True)]
    mine = [(index, image) for index, image in joint if index < 5]
    assert len(mine) == len(alone) == 16
    for (index, image), (other, expected) in zip(mine, alone, strict=True):
        assert index == other
        assert torch.equal(image, expected)


def test_one_source_and_one_target_are_read_as_before_there_were_several(settings):
    """The digest was taken of the code that knew one source and one target."""
    settings.more_sources, settings.more_targets = {}, {}
    indices = [(b["source"].index.tolist(), b["target"].index.tolist()) for b in batches(settings)]
    windows = [(b["source"].window.tolist(), b["target"].window.tolist()) for b in batches(settings)]
    assert hashlib.sha256(repr((indices, windows)).encode()).hexdigest()[:16] == "b28056220370385b"


@pytest.mark.parametrize("rare", [False, True])
def test_two_ranks_read_together_what_one_process_reads(settings, rare):
    settings.rare_class.enabled = rare
    ranks = [batches(settings, r, 2) for r in (0, 1)]
    settings.source_batch, settings.target_batch = 6, 4
    joined = batches(settings)
    for step in range(STEPS):
        for name in ("source", "target"):
            for field in ("image", "index"):
                parts = [getattr(r[step][name], field) for r in ranks]
                together = torch.stack(parts, dim=1).flatten(0, 1)
                assert torch.equal(together, getattr(joined[step][name], field))


def test_a_resumed_run_reads_what_the_whole_run_would_have_read(settings):
    assert_equal(batches(settings)[5:], batches(settings, 0, 1, 5))


def test_workers_change_nothing(settings):
    alone = batches(settings)
    settings.workers, settings.cache = 2, "none"
    assert_equal(alone, batches(settings))


def test_rare_classes_are_drawn_by_the_statistics_of_each_source(settings):
    settings.rare_class = RareClassSettings(enabled=True, min_pixels=0, min_crop_pixels=0)
    module = make(settings)
    first, second = module._streams["source"].parts
    assert np.flatnonzero(first.order.probabilities).tolist() == [0, 1, 2, 13]
    assert np.flatnonzero(second.order.probabilities).tolist() == [5, 6]


def test_domains_have_sizes_and_crops_of_their_own(settings, tmp_path):
    settings.more_sources["second"].size, settings.source_batch = [16, 24], 12
    source = next(iter(make(settings).train_dataloader()))["source"]
    assert source.image.shape == (12, 3, 16, 24)
    assert (source.window[source.index >= 5, :2] == 0).all()  # nothing to move the crop in
    assert (source.window[source.index < 5, :2] != 0).any()
    settings.more_sources["second"].size = [12, 18]
    with pytest.raises(UserError, match=r"larger than the images of data.more_sources.second, .*data.more_sources"):
        make(settings)


def test_whole_images_of_several_targets_are_numbered_on(settings, tmp_path):
    module = make(settings)
    assert module.target_shape == (10, 32, 48)
    [batch] = module.target_images([[5, 6, 9]])
    assert batch.index.tolist() == [5, 6, 9]
    assert [set(image[0].unique().tolist()) <= set(HAS["other"]) for image in batch.image] == [False, True, True]


# ---------------------------------------------------------------------- what cannot be joined


def test_a_source_with_other_classes_is_refused_and_both_are_named(settings, tmp_path):
    settings.more_sources["third"] = DomainSettings("camvid", str(camvid_tree(tmp_path / "camvid")))
    with pytest.raises(UserError, match=r"data.more_sources.third: .*classes of camvid .*data.classes=cityscapes"):
        make(settings).find()


def test_every_source_needs_depth_where_the_method_does(settings, tmp_path):
    metres = np.tile(np.linspace(40, 5, 32)[:, None], (1, 48))
    for name in ("source", "target", "other"):
        for index in range(IMAGES[name]):
            save(tmp_path / name / f"depth/{index:06d}.png", (256 * metres).astype(np.uint16))
    with pytest.raises(UserError, match=r"data.more_sources.second: 3 of 3 images have no depth"):
        make(settings, needs_depth=True)
    settings.more_sources = {}
    assert batches(settings, needs_depth=True)[0]["target"].depth.shape == (2, 1, 16, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s, "target", None), r"data.more_targets needs data.target"),
        (lambda s: setattr(s, "reader", "shards"), r"data.reader=shards reads one target"),
        (lambda s: setattr(s.source, "labelled", 3), r"data.source.labelled=3: all its labels are read"),
        (lambda s: setattr(s.target, "labelled", 7), r"data.target.labelled=7: there are only 6 images"),
        (lambda s: setattr(s.target, "labelled", "no.txt"), r"data.target.labelled=no.txt: there is no such list"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(settings, change, message):
    change(settings)
    with pytest.raises(UserError, match=message):
        make(settings, needs_target=False)


def test_classes_that_one_source_has_are_not_missed_in_another(settings, caplog):
    settings.eval_classes = "19"
    make(settings)
    missed = [r.getMessage() for r in caplog.records if "has a pixel of" in r.getMessage()]
    assert [line.partition(":")[0] for line in missed] == ["data.source", "data.more_sources.second"]
    for line in missed:
        assert "wall" in line  # in neither
        assert not any(f" {name}," in line for name in ("road", "car", "pole", "traffic light"))


# ---------------------------------------------------------------------- few labels


def test_labelled_target_images_are_half_of_the_source_terms_and_stay_unlabelled_in_the_target(settings, monkeypatch):
    settings.more_sources, settings.more_targets, settings.target.labelled = {}, {}, 2
    settings.source_batch = 4
    opened, read_label = set(), SegmentationDataset.read_label
    monkeypatch.setattr(
        SegmentationDataset,
        "read_label",
        lambda self, i: opened.add((self.root.name, self.names[i])) or read_label(self, i),
    )
    module = make(settings)
    read = list(module.train_dataloader())
    [names] = module.labelled.names.values()
    assert len(names) == module.labelled_target_images == 2
    assert {name for root, name in opened if root == "target"} == set(names)
    for batch in read:
        assert (batch["source"].index >= 5).sum() == 2
        assert batch["source"].label.shape == (4, 16, 24)
    assert set(torch.cat([b["target"].index for b in read]).tolist()) == set(range(6))


def test_methods_without_target_images_use_the_labels_too(settings):
    settings.more_sources, settings.target.labelled = {}, 0.5
    module = make(settings, needs_target=False)
    assert set(next(iter(module.train_dataloader()))) == {"source"}
    assert module.labelled_target_images == 3


def test_the_oracle_reads_no_other_labels(settings):
    settings.more_targets, settings.target.labelled = {}, 2
    module = make(settings, target_labels=True)
    assert {i for b in module.train_dataloader() for i in b["source"].index.tolist()} == {0, 1}
    assert module.labelled_target_images == 2
    settings.target.labelled = None
    assert make(settings, target_labels=True).labelled_target_images == 6


def test_the_oracle_trains_on_all_targets(settings):
    module = make(settings, target_labels=True)
    assert {i for b in module.train_dataloader() for i in b["source"].index.tolist()} == set(range(10))


def test_a_share_is_rounded_a_seed_decides_and_more_labels_contain_fewer(settings):
    def names(labelled, seed=1):
        settings.target.labelled = labelled
        [found] = make(settings, seed=seed, needs_target=False).labelled.names.values()
        return found

    assert [len(names(share)) for share in (0.01, 0.25, 0.5, 1.0)] == [1, 2, 3, 6]
    assert set(names(2)) < set(names(3)) < set(names(6))
    assert len({tuple(names(3, seed)) for seed in range(6)}) > 1
    assert names(3) == sorted(names(3))


def test_the_choice_is_written_and_read_again(settings, tmp_path):
    settings.target.labelled = settings.more_targets["other"].labelled = 2
    run = tmp_path / "run"
    run.mkdir()
    first = make(settings)
    first.labelled.write(run)
    assert sorted(path.name for path in run.iterdir()) == ["labelled_more_targets.other.txt", "labelled_target.txt"]
    assert (run / "labelled_target.txt").read_text().split() == first.labelled.names["data.target"]
    other = ["000000.png", "000005.png"]
    (run / "labelled_target.txt").write_text("\n".join(other))
    assert make(settings, resumed=run).labelled.names["data.target"] == other
    settings.target.labelled = 3
    with pytest.raises(UserError, match=r"labelled_target.txt: the run has trained on .* 2 images, .*labelled=3"):
        make(settings, resumed=run)


def test_a_list_of_images_is_a_choice(settings, tmp_path):
    listed = tmp_path / "split.txt"
    settings.target.labelled = str(listed)
    listed.write_text("000004.png\n\n000001.png\n")
    assert make(settings).labelled.names["data.target"] == ["000001.png", "000004.png"]
    for content, message in (("000004.jpg", "lists 000004.jpg, which is none of the 6"), ("", "lists no image")):
        listed.write_text(content)
        with pytest.raises(UserError, match=message):
            make(settings)


def test_only_the_chosen_images_need_labels(settings, tmp_path):
    settings.more_targets, settings.target.labelled = {}, 2
    [names] = make(settings).labelled.names.values()
    for file in (tmp_path / "target/label").iterdir():
        if file.name not in names:
            file.unlink()
    assert make(settings).labelled_target_images == 2
    (tmp_path / "target/label" / names[0]).unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no label, the first is .*" + names[0]):
        make(settings)


def test_a_data_set_without_labels_is_told(settings, tmp_path):
    settings.more_targets = {}
    save(tmp_path / "viper/train/img/001/001_00001.jpg", np.zeros((32, 48, 3), np.uint8))
    settings.target = DomainSettings("viper", str(tmp_path / "viper"), labelled=1)
    with pytest.raises(UserError, match=r"data.target: VIPER has no supported labels"):
        make(settings)
