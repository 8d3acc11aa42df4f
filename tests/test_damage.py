"""Every file that the package reads, damaged in every way that a seed draws: refused in a line, or read as it was.

A damage is `silent` where a format with checksums did not show it, `unnoticed` in a format that has none.
"""

from __future__ import annotations

import copy
import csv
import functools
import hashlib
import json
import os
import re
import shutil
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.io import savemat

from command_line import configured, small_run
from damage import ANEW, Reader, time_limit, try_out
from data.trees import blocks, image_of, save, save_palette, sequence_tree, streets_tree
from results.invented import invented
from uda_seg import evaluate, predict, train
from uda_seg.callbacks.checkpoint import AtomicCheckpointIO
from uda_seg.callbacks.csv_log import CSVLog
from uda_seg.data.class_files import read_class_file
from uda_seg.data.custom import CustomClasses
from uda_seg.data.custom import described as class_set_of
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.decoding import read_palette, read_red
from uda_seg.data.depth import read_metres, read_sfsu
from uda_seg.data.depth_layouts import described
from uda_seg.data.images import read_image
from uda_seg.data.integrity import check_image_file
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.prepare.archives import list_members, unpack
from uda_seg.data.prepare.check import check_domain, to_text
from uda_seg.data.prepare.journal import Finding, Journal, stamp_of
from uda_seg.data.sequences import LAYOUTS, _read_json
from uda_seg.data.specs import SPECS
from uda_seg.data.statistics import class_statistics, save_statistics
from uda_seg.data.storage.disk_cache import find_cache, write_cache
from uda_seg.data.storage.label_store import LabelDraft, LabelStore
from uda_seg.data.storage.packing import pack
from uda_seg.data.storage.shards import ShardDataset
from uda_seg.data.stream import SampleReader
from uda_seg.errors import UserError
from uda_seg.models.small import ResidualEncoder
from uda_seg.models.text import load_text, save_text
from uda_seg.models.weights import load_encoder
from uda_seg.results.result import read_result, write_result
from uda_seg.runs import build
from uda_seg.runs.checkpoint import load_trained, load_weights, read_checkpoint
from uda_seg.runs.record import read_metrics, read_record
from uda_seg.storage.files import write_text
from uda_seg.sweeps import outcomes as jobs
from uda_seg.sweeps.study import open_study
from uda_seg.sweeps.table import write_table

SIZE = (16, 24)


def encoder() -> ResidualEncoder:
    torch.manual_seed(0)
    return ResidualEncoder(widths=(4, 4, 4, 4), blocks=(1, 1, 1, 1))


def tree(root: Path) -> SegmentationDataset:
    streets_tree(root, 3, SIZE)
    return SegmentationDataset(SPECS["streets"], root, "train", CITYSCAPES, labeled=True)


# ---------------------------------------------------------------------- weights and checkpoints


def a_checkpoint(folder: Path) -> Path:
    said = {
        "format": 1,
        "version": "0.1.0",
        "choices": {"method": "dacs"},
        "overrides": ["steps=4"],
        "classes": "camvid",
    }
    state = {f"segmentor.encoder.{name}": tensor for name, tensor in encoder().state_dict().items()}
    content = {"state_dict": state, "uda_seg": said, "global_step": 4, "epoch": 0, "loops": {"fit_loop": {}}}
    AtomicCheckpointIO().save_checkpoint(content, folder / "checkpoints" / "last.ckpt")
    return folder / "checkpoints" / "last.ckpt"


def weights(name: str, **how: object):
    def make(folder: Path) -> Path:
        state = {name: tensor.contiguous() for name, tensor in encoder().state_dict().items()}
        path = folder / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path, **how)
        if "sum" in name:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            path = path.rename(path.with_stem(path.stem.replace("sum", digest)))
        return path

    return make


def of_encoder(path: Path) -> dict:
    network = encoder()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    load_encoder(network, path)
    return network.state_dict()


def class_text(folder: Path) -> Path:
    save_text(folder / "text.npz", ["a car", "a bus"], torch.randn(2, 40), "a model", "a licence")
    return folder / "text.npz"


# ---------------------------------------------------------------------- images, labels, depth


def picture(suffix: str):
    def make(folder: Path) -> Path:
        path = folder / f"a{suffix}"
        label = blocks(0, SIZE, list(range(19)))
        if suffix == ".palette.png":
            save_palette(path, label)
        elif suffix == ".red.png":
            save(path, np.dstack([label, label, label]).astype(np.uint16))
        elif suffix == ".depth.png":
            save(path, 256 * (10 + label.astype(np.uint16)))
        else:
            save(path, image_of(label))
        return path

    return make


def matlab(packed: bool):
    def make(folder: Path) -> Path:
        metres = 10 + blocks(0, SIZE, list(range(19))).astype(np.float64)
        savemat(folder / "a.mat", {"depth_map": metres, "more": np.zeros(3)}, do_compression=packed)
        return folder / "a.mat"

    return make


def text_file(name: str, content: object):
    def make(folder: Path) -> Path:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder / name

    return make


def a_result(folder: Path) -> Path:
    write_result(folder / "result.json", invented("dacs", 0, 0.7))
    return folder / "result.json"


def camera(path: Path) -> object:
    (root,) = (parent for parent in path.parents if parent.name == "sequences")
    _read_json.cache_clear()
    return LAYOUTS["streets"].camera(root, "train", "000000.png")


def sequences(name: str):
    return lambda folder: sequence_tree(folder / "sequences", 2) / name


# ---------------------------------------------------------------------- caches, shards, archives


def resized(name: str):
    def make(folder: Path) -> Path:
        write_cache(tree(folder / "tree"), None, folder / "cache", [SIZE] * 3)
        (found,) = (p for p in (folder / "cache").rglob(name) if "-image-" in str(p))
        return found

    return make


def from_cache(path: Path) -> list:
    folder = next(parent for parent in path.parents if parent.name == "cache").parent
    data = SegmentationDataset(SPECS["streets"], folder / "tree", "train", CITYSCAPES, labeled=True)
    reader = SampleReader(data, None, stored=find_cache(data, None, folder / "cache"))
    return [reader[index] for index in range(3)]


def shards(name: str):
    def make(folder: Path) -> Path:
        data = tree(folder / "tree")
        for index, image in enumerate((folder / "tree" / "image").iterdir()):
            if index == 1:  # a JPEG, which has no checksum of its own
                cv2.imwrite(str(image.with_suffix(".jpg")), cv2.imread(str(image)))
                image.with_suffix(".jpg").rename(image)
        pack(data, folder / "shards", 2)
        return folder / "shards" / name

    return make


def from_shards(path: Path) -> list:
    data = ShardDataset(str(path.parent), "data.target", count=None, cache_bytes=10**9, cure="prepare it")
    return [data.read(index) for index in range(len(data))]


def round_of(name: str):
    def make(folder: Path) -> Path:
        draft = LabelDraft(LabelStore(folder, 2, SIZE), 0, 2, "network")
        draft.begin()
        draft.write("selected", 0, np.stack([blocks(i, SIZE, list(range(19))) for i in range(2)]))
        draft.finish()
        return folder / name

    return make


def labels_of_round(path: Path) -> object:
    store = LabelStore(path.parent, 2, SIZE)
    if not store.has(0):
        return ANEW
    return store.read(0, torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.int64), SIZE)


def kept_counts(folder: Path) -> Path:
    data = tree(folder / "tree")
    save_statistics(data, folder / "cache", class_statistics(data, folder / "before"))
    (file,) = (folder / "cache").rglob("*.json")
    return file


def counts(path: Path) -> object:
    folder = path.parent.parent.parent
    data = SegmentationDataset(SPECS["streets"], folder / "tree", "train", CITYSCAPES, labeled=True)
    return class_statistics(data, folder / "cache")  # those that cannot be read are counted anew


def a_journal(folder: Path) -> Path:
    (folder / "a.png").write_bytes(b"x")
    journal = Journal(folder / "labels.jsonl", "labels")
    journal.note("a.png", stamp_of(folder / "a.png"), Finding((16, 24), {3: 17, 9: 12}))
    journal.close()
    return folder / "labels.jsonl"


def remembered(path: Path) -> object:
    found = Journal(path, "labels").recall("a.png", path.parent / "a.png")
    return ANEW if found is None else found


def a_zip(folder: Path) -> Path:
    picture(".png")(folder)
    shutil.make_archive(str(folder / "packed"), "zip", folder, ".")
    with zipfile.ZipFile(folder / "packed.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for number in range(3):
            packed.writestr(
                f"images/{number}.png", zlib.compress(bytes([number]) * 99) + (folder / "a.png").read_bytes()
            )
    return folder / "packed.zip"


def unpacked(path: Path) -> object:
    root = path.parent / "unpacked"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    unpack(list_members([path], frozenset(("images",))), root)
    found = {p.name: p.read_bytes() for p in sorted(root.rglob("*.png"))}
    return found or ANEW  # a ZIP of other things is passed over, and the folders are missed


# ---------------------------------------------------------------------- runs and sweeps


def log_goes_on(path: Path) -> object:
    """The log of a run that goes on at step 3: never a row twice."""
    log = CSVLog(path)
    log.log_metrics({"loss": 0.3}, 3)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    keys = [tuple(row[:2]) for row in rows]
    assert rows[0] == ["step", "name", "value"]
    assert len(set(keys)) == len(keys)
    assert rows[-1] == ["3", "loss", "0.3"]
    return rows


def a_study(folder: Path) -> Path:
    study = open_study(folder, ["steps=4"], "miou", "maximize", False)
    for value in (0.3, 0.5):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-5, 1e-3, log=True)
        study.tell(trial, value)
    return folder / "study.log"


def noted(path: Path) -> object:
    outcome = jobs._read(path)
    return ANEW if outcome.error is not None else outcome


def trials(path: Path) -> object:
    study = open_study(path.parent, ["steps=4"], "miou", "maximize", False)
    return [(trial.number, trial.value, trial.params) for trial in study.trials]


STATS = [{"file": "a/x_labelTrainIds.png", "0": 12, "3": 4}, {"file": "a/y_labelTrainIds.png", "1": 5}]
METRICS = {"step": 4, "seed": 0, "miou": 0.5, "pixel_accuracy": 0.7, "source_images": 8, "best": {"miou": 0.6}}
CLASSES = "names: [road, sky]\npalette: [[1, 2, 3], [4, 5, 6]]\nthings: [sky]\n"
NOTE = {"folder": "a/seed0", "sweep": "a", "result": 0.5, "error": None}

READERS = {
    "checkpoint": Reader(a_checkpoint, read_checkpoint, summed=True),
    "weights": Reader(weights("mit.pth"), of_encoder, summed=True),
    "weights without sums": Reader(weights("old.pth", _use_new_zipfile_serialization=False), of_encoder, summed=False),
    "weights named by sum": Reader(
        weights("net-sum.pth", _use_new_zipfile_serialization=False), of_encoder, summed=True
    ),
    "safetensors": Reader(weights("a.safetensors"), of_encoder, summed=False),
    "safetensors named by sum": Reader(weights("a-sum.safetensors"), of_encoder, summed=True),
    "class text": Reader(class_text, functools.partial(load_text, prompts=["a bus", "a car"]), summed=True),
    "PNG": Reader(picture(".png"), read_image, summed=True),
    "PNG in prepare": Reader(picture(".png"), check_image_file, summed=True),
    "JPEG": Reader(picture(".jpg"), read_image, summed=False),
    "palette label": Reader(picture(".palette.png"), read_palette, summed=True),
    "16-bit label": Reader(picture(".red.png"), read_red, summed=True),
    "depth PNG": Reader(picture(".depth.png"), functools.partial(read_metres, unit=1 / 256), summed=True),
    "packed MATLAB": Reader(matlab(packed=True), read_sfsu, summed=True),
    "MATLAB": Reader(matlab(packed=False), read_sfsu, summed=False),
    "depth.json": Reader(
        text_file("depth.json", {"encoding": "disparity", "learnt_from": "game"}),
        lambda path: described(path.parent), summed=False,
    ),
    "camera": Reader(sequences("camera/000000.json"), camera, summed=False),
    "world.json": Reader(sequences("world.json"), camera, summed=False),
    "cache of pixels": Reader(resized("data.bin"), from_cache, summed=True),
    "index of a cache": Reader(resized("index.json"), from_cache, summed=True),
    "shard": Reader(shards("images-000000.tar"), from_shards, summed=True),
    "index of shards": Reader(shards("index.json"), from_shards, summed=True),
    "stored labels": Reader(round_of("round_000.npy"), labels_of_round, summed=True),
    "sum of stored labels": Reader(round_of("round_000.crc32"), labels_of_round, summed=True),
    "kept statistics": Reader(kept_counts, counts, summed=True),
    "official statistics": Reader(text_file("sample_class_stats.json", STATS), read_class_file, summed=False),
    "official classes": Reader(
        text_file("samples_with_class.json", {"0": [["a/x.png", 5], ["b/y.png", 7]]}), read_class_file, summed=False
    ),
    "journal": Reader(a_journal, remembered, summed=True),
    "ZIP": Reader(a_zip, unpacked, summed=True),
    "run.yaml": Reader(
        text_file("run.yaml", "config:\n  steps: 4\n  data:\n    crop: [32, 32]\n"),
        lambda path: read_record(path.parent), summed=False,
    ),
    "metrics.json": Reader(text_file("metrics.json", METRICS), lambda path: read_metrics(path.parent), summed=False),
    "result.json": Reader(
        a_result, lambda path: repr(read_result(path)), summed=False
    ),
    "metrics.csv": Reader(
        text_file("metrics.csv", "step,name,value\r\n" + "".join(f"{i},loss,0.{i}\r\n{i},lr,1e-4\r\n" for i in (1, 2))),
        log_goes_on, summed=False,
    ),
    "study.log": Reader(a_study, trials, summed=False),
    "note of a job": Reader(text_file("000001.0.json", NOTE), noted, summed=False),
    "class_set": Reader(
        text_file("classes.yaml", CLASSES),
        lambda path: class_set_of(str(path), CustomClasses, "data.class_set"), summed=False,
    ),
}  # fmt: skip


def bears(name: str, seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property) -> None:
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    tally = try_out(READERS[name], tmp_path, seeds, monkeypatch)
    record_property("fuzz", str(tally))
    assert not tally.details, "\n".join(tally.details[:10])


@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_refused_in_a_line(name, tmp_path, monkeypatch, record_property):
    start = 9 * (zlib.crc32(name.encode()) % 1000)  # each reader has draws of its own
    bears(name, range(start, start + 9), tmp_path, monkeypatch, record_property)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damages_are_refused_in_a_line(name, tmp_path, monkeypatch, record_property):
    bears(name, range(180), tmp_path, monkeypatch, record_property)


# ---------------------------------------------------------------------- sound archives with the wrong content


def flipped_inside(path: Path, name: str) -> None:
    """Flip two bits of a tensor, as a disk does: no table of contents is touched."""
    with zipfile.ZipFile(path) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(name))
    content = bytearray(path.read_bytes())
    start = member.header_offset + 30
    lengths = int.from_bytes(content[start - 4 : start - 2], "little") + int.from_bytes(
        content[start - 2 : start], "little"
    )
    content[start + lengths + 1] ^= 0x40
    content[start + lengths + 9] ^= 0x40
    path.write_bytes(bytes(content))


@pytest.fixture
def run(camvid, tmp_path) -> Path:
    """The folder of a run of three of four steps."""
    overrides = ("method=dacs", "steps=4", "callbacks.checkpoints=4", "trainer.max_steps=3")
    train.train(configured(*small_run(camvid), *overrides), tmp_path / "run")
    return tmp_path / "run"


def resumed(camvid: Path, folder: Path, how: str = "last") -> None:
    overrides = ("method=dacs", "steps=4", "callbacks.checkpoints=4", f"resume={how}")
    train.train(configured(*small_run(camvid), *overrides), folder)


def test_two_flipped_bits_of_a_tensor_are_seen_by_all_who_read_it(cli, run, camvid, tmp_path, caplog):
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    resumed(camvid, whole)
    last = run / "checkpoints" / "last.ckpt"
    flipped_inside(last, "/data/0")
    torch.load(last, weights_only=True)  # says nothing
    for main, more in ((evaluate.main, ()), (predict.main, (f"input={camvid}/val", "output=out"))):
        assert re.search(
            r"last\.ckpt is damaged: .*; take another checkpoint of the run",
            cli(main, f"checkpoint={last}", *more).error,
        )
    with pytest.raises(UserError, match=r"last\.ckpt is damaged: Bad CRC-32 for file"):
        resumed(camvid, run, str(last))
    resumed(camvid, run)
    assert "last.ckpt is damaged" in caplog.text
    assert "trying an earlier one" in caplog.text
    states = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, run)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def other_weight(change):
    def damage(content: dict) -> None:
        name = next(n for n, t in content["state_dict"].items() if n.startswith("segmentor.") and t.dim() == 4)
        content["state_dict"][name] = change(content["state_dict"][name])

    return damage


def said(key: str, value: object):
    return lambda content: content["uda_seg"].__setitem__(key, value)


NONSENSE = {
    "text for a weight": (other_weight(lambda t: "weights"), "is a str, not a tensor"),
    "NaN": (other_weight(lambda t: t * torch.nan), "is not finite"),
    "one infinite value": (other_weight(lambda t: t.index_fill(0, torch.tensor([0]), torch.inf)), "is not finite"),
    "int8": (other_weight(lambda t: t.to(torch.int8)), "holds torch.int8, not torch.float32"),
    "complex": (other_weight(lambda t: t.to(torch.complex64)), "holds torch.complex64"),
    "no memory": (other_weight(lambda t: t.to("meta")), "is not a plain tensor in memory"),
    "sparse": (other_weight(lambda t: t.to_sparse()), "is not a plain tensor in memory"),
    "another shape": (other_weight(lambda t: t[:1]), "does not match|does not fit"),
    "huge and empty": (other_weight(lambda t: torch.zeros(1).expand(10**15)), "does not match|does not fit"),
    "no weights": (lambda c: c["state_dict"].clear(), "does not match|does not fit"),
    "numbered weights": (
        lambda c: c["state_dict"].__setitem__(3, torch.zeros(1)),
        "the weight 3 is missing or nonsense",
    ),
    "weights in a list": (lambda c: c.__setitem__("state_dict", []), "is no checkpoint of uda_seg"),
    "choices in a list": (said("choices", ["method"]), "choices is missing or nonsense"),
    "a choice that is a number": (said("choices", {"method": 3}), "choices is missing or nonsense"),
    "overrides as text": (said("overrides", "steps=3"), "overrides is missing or nonsense"),
    "numbers for overrides": (said("overrides", [3]), "overrides is missing or nonsense"),
    "no classes": (lambda c: c["uda_seg"].pop("classes"), "classes is missing or nonsense"),
    "options as text": (said("options", "none"), "options is missing or nonsense"),
    "images as text": (said("source_images", "8"), "source_images is missing or nonsense"),
    "half a step": (lambda c: c.__setitem__("global_step", 0.5), "global_step is missing or nonsense"),
    "another version": (said("format", 99), "was written by a newer version"),
}


@pytest.fixture(scope="module")
def sound(camvid, tmp_path_factory):
    """A checkpoint's content, and an untrained module of the same network."""
    folder = tmp_path_factory.mktemp("sound")
    config = configured(*small_run(camvid), "method=dacs", "steps=1", "callbacks.checkpoints=1")
    train.train(config, folder)
    module = build.build_module(config, build.build_data(config))
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True), module


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_in_a_sound_checkpoint_is_refused_by_all_who_read_it(sound, tmp_path, name):
    change, expected = NONSENSE[name]
    content, module = sound
    content = {**content, "state_dict": dict(content["state_dict"]), "uda_seg": dict(content["uda_seg"])}
    change(content)
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    for read in (lambda: load_trained(module, read_checkpoint(path), path), lambda: load_weights(module, path)):
        with time_limit(20), pytest.raises(UserError, match=expected) as caught:
            read()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


def first_state(content: dict) -> dict:
    return content["optimizer_states"][0]["state"][0]


PROGRESS = {
    "no optimiser": lambda c: c.pop("optimizer_states"),
    "an optimiser as text": lambda c: c.__setitem__("optimizer_states", ["adam"]),
    "groups as text": lambda c: c["optimizer_states"][0].__setitem__("param_groups", "all"),
    "a moment of NaN": lambda c: first_state(c)["exp_avg"].fill_(torch.nan),
    "a moment of another shape": lambda c: first_state(c).__setitem__("exp_avg_sq", torch.zeros(7)),
    "a moment that is text": lambda c: first_state(c).__setitem__("exp_avg", "zero"),
    "no moment": lambda c: first_state(c).pop("exp_avg"),
    "loops as text": lambda c: c.__setitem__("loops", {"fit_loop": "done"}),
    "no progress": lambda c: c["loops"]["fit_loop"].pop("epoch_loop.batch_progress"),
    "progress as text": lambda c: c["loops"]["fit_loop"].__setitem__("epoch_progress", {"total": "all"}),
    "callbacks in a list": lambda c: c.__setitem__("callbacks", []),
    "a callback's number as text": lambda c: c["callbacks"]["Checkpoints"].__setitem__("source_images", "8"),
    "no update count": lambda c: c["state_dict"].pop("teacher.update_count"),
    "a list for the version": lambda c: c.__setitem__("pytorch-lightning_version", []),
    "no version": lambda c: c.pop("pytorch-lightning_version"),
}


def test_nonsense_in_what_a_run_goes_on_from_is_refused(run, camvid):
    last = run / "checkpoints" / "last.ckpt"
    sound = torch.load(last, weights_only=True)
    for name, change in PROGRESS.items():
        content = copy.deepcopy(sound)
        change(content)
        torch.save(content, last)
        with time_limit(60), pytest.raises(UserError) as caught:
            resumed(camvid, run, str(last))
        assert "\n" not in str(caught.value), name
        assert "damaged" in str(caught.value), f"{name}: {caught.value}"


def test_a_damaged_record_or_result_of_one_run_does_not_cost_the_table(cli, camvid, tmp_path):
    sweep = (*small_run(camvid, steps=1), "method=source_only", "callbacks.checkpoints=1", "hydra.sweep.dir=sweep")
    assert cli(train.main, "-m", *sweep, "seed=0,1,2").code == 0
    results = sorted((tmp_path / "sweep").rglob("metrics.json"))
    assert len(results) == 3
    results[0].write_text('{"step": ')
    (results[1].parent / "run.yaml").write_bytes(b"\xff\xfe")
    finished = cli(train.main, "-m", *sweep, "seed=0,1,2")
    assert "2 job(s) failed" in finished.error
    assert "seed2" not in finished.error
    assert runs_in(tmp_path / "sweep" / "table.csv") == ["1"]
    with pytest.raises(UserError, match=r"the table lacks 1 of 3 runs: .*metrics\.json cannot be read as JSON"):
        write_table([jobs.Outcome(str(path.parent), str(tmp_path / "sweep"), 0.5, None) for path in results])
    assert sum(map(int, runs_in(tmp_path / "sweep" / "table.csv"))) == 2


def runs_in(table: Path) -> list[str]:
    with table.open(newline="") as file:
        return [row["runs"] for row in csv.DictReader(file)]


def test_a_damaged_log_is_set_aside_and_goes_on(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    path.write_bytes(
        b"step,name,value\r\n1,loss,0.1\r\n2,lo\xff\xfes,0.2\r\n2,lr,x\r\n2,loss,0.2\r\n1,loss,0.1\r\n3,lo"
    )
    rows = log_goes_on(path)
    assert rows == [["step", "name", "value"], ["1", "loss", "0.1"], ["2", "loss", "0.2"], ["3", "loss", "0.3"]]
    assert "metrics.csv.damaged" in caplog.text
    assert (tmp_path / "metrics.csv.damaged").read_bytes().endswith(b"3,lo")


def test_archives_without_checksums_and_of_other_names_are_read(tmp_path, caplog):
    """PyTorch can leave checksums out, dates are no digests, and a resumed name may be anything."""
    state = encoder().state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "unsummed.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(state, tmp_path / "net-20240131.pth", _use_new_zipfile_serialization=False)
    with caplog.at_level("INFO"):
        for name in ("unsummed.pth", "net-20240131.pth"):
            caplog.clear()
            assert of_encoder(tmp_path / name).keys() == state.keys()
            assert f"{name} has no checksums: damage inside a tensor would go unnoticed" in caplog.text


def test_files_whose_names_are_no_utf8_are_read_and_told(tmp_path):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    streets_tree(tmp_path / "tree", 2, SIZE).rename(root)
    data = SegmentationDataset(SPECS["streets"], root, "train", CITYSCAPES, labeled=False)
    report = check_domain(data, "data.source", tmp_path / "cache", labels="needed")
    assert not report.damaged
    (root / "image" / "000001.png").write_bytes(b"x")
    report = check_domain(data, "data.source", tmp_path / "cache", labels="needed")
    write_text(tmp_path / "problems.txt", to_text(report.problems))
    assert r"caf\udce9/image/000001.png" in (tmp_path / "problems.txt").read_text()
