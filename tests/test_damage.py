"""Every file that the package reads, damaged in every way that a seed draws: refused in a line, or read as it was.

A damage is `silent` where a format with checksums did not show it, `unnoticed` in a format that has none.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
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

from damage import ANEW, Reader, try_out
from data.trees import blocks, image_of, save, save_palette, sequence_tree, streets_tree
from uda_seg import jobs
from uda_seg.callbacks.checkpoint import AtomicCheckpointIO
from uda_seg.callbacks.csv_log import CSVLog
from uda_seg.data.archives import list_members, unpack
from uda_seg.data.class_files import read_class_file
from uda_seg.data.custom import CustomClasses
from uda_seg.data.custom import described as class_set_of
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.data.decoding import read_palette, read_red
from uda_seg.data.depth import described, read_metres, read_sfsu
from uda_seg.data.disk_cache import find_cache, write_cache
from uda_seg.data.images import read_image
from uda_seg.data.integrity import check_image_file
from uda_seg.data.journal import Finding, Journal, stamp_of
from uda_seg.data.label_store import LabelDraft, LabelStore
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.sequences import LAYOUTS, _read_json
from uda_seg.data.shards import ShardDataset, pack
from uda_seg.data.specs import SPECS
from uda_seg.data.statistics import class_statistics, save_statistics
from uda_seg.data.stream import SampleReader
from uda_seg.models.small import ResidualEncoder
from uda_seg.models.text import load_text, save_text
from uda_seg.models.weights import load_encoder
from uda_seg.records import read_metrics, read_record
from uda_seg.runs import read_checkpoint
from uda_seg.search import open_study

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
