"""Small things most tests need."""

from __future__ import annotations

import gc
import os
from functools import partial

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from command_line import CommandLine
from data.trees import camvid_tree, exported
from numerics import in_float64
from once import ONCE
from uda_seg.data.batch import DomainBatch
from uda_seg.data.labels import CITYSCAPES
from uda_seg.data.streets.export import export
from uda_seg.data.streets.layouts import LAYOUTS
from uda_seg.methods.settings import OptimizerSettings, Plan, TeacherSettings
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.small import ResidualEncoder

CROP = (32, 64)


# One thread, here and in the processes that tests start: tiny tensors only get slower on more, sums come in one order
# whatever the machine, and a fork of a process whose OpenMP threads have worked would wait for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# Torch looks every five seconds whether a loader's workers live. One that another thread hears of, or whose loader was
# found as garbage and can tell it nothing any more, is waited for so long.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
_MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)
gc.disable()  # while modules are imported, which make a million objects and no garbage


def pytest_collection_finish():
    """Leave the libraries' million objects to themselves: looking for garbage in them is a tenth of the tests' time."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def double():
    """The test in float64, what it makes of networks and asks to be made before included."""
    with in_float64():
        yield


@pytest.fixture(autouse=True, scope="session")
def what_tests_have_in_common_is_done_once():
    with pytest.MonkeyPatch.context() as patch:
        for (owner, name), once in ONCE.items():
            patch.setattr(owner, name, once(getattr(owner, name)))
        yield


@pytest.fixture
def make_segmentor():
    """A network of a few thousand weights with the structure of the large ones."""

    def make(seed: int = 0, pretrained: bool = False, width: int = 8) -> Segmentor:
        torch.manual_seed(seed)
        encoder = ResidualEncoder(widths=(4, 6, 8, 8), blocks=(1, 1, 1, 1))
        encoder.pretrained = pretrained
        return Segmentor(encoder, partial(DAFormerHead, width=width), num_classes=19)

    return make


@pytest.fixture
def make_plan():
    def make(**changes) -> Plan:
        settings = {
            "steps": 4,
            "seed": 3,
            "classes": CITYSCAPES,
            "eval_classes": CITYSCAPES.subset("19"),
            "crop": CROP,
            "log_every": 1,
            "optimizer": OptimizerSettings(lr=1e-3, head_lr_multiplier=2.0),
            "teacher": TeacherSettings(alpha=0.9, threshold=0.06),
        }
        return Plan(**{**settings, **changes})

    return make


def blocks(generator: torch.Generator, batch: int) -> torch.Tensor:
    """Labels in 8 x 8 blocks, some of them ignored: classes large enough for feature cells."""
    grid = torch.randint(0, 20, (batch, CROP[0] // 8, CROP[1] // 8), generator=generator)
    label = torch.where(grid == 19, 255, grid).to(torch.uint8)
    return label.repeat_interleave(8, 1).repeat_interleave(8, 2)


def inverse_depths(generator: torch.Generator, batch: int) -> torch.Tensor:
    """Distances between 4 and 60 metres, a fifth of the pixels unknown."""
    metres = 4 + 56 * torch.rand(batch, 1, *CROP, generator=generator)
    unknown = torch.rand(metres.shape, generator=generator) < 0.2
    return torch.where(unknown, 1.0, 655.36 / (metres + 0.01))


@pytest.fixture
def make_batch():
    def make(seed: int = 0, batch: int = 2, depth: bool = False) -> dict[str, DomainBatch]:
        g = torch.Generator().manual_seed(seed)

        def domain(labelled: bool) -> DomainBatch:
            return DomainBatch(
                image=torch.randint(0, 256, (batch, 3, *CROP), generator=g, dtype=torch.uint8),
                label=blocks(g, batch) if labelled else None,
                index=torch.arange(batch),
                valid=torch.ones(batch, *CROP, dtype=torch.bool),
                depth=inverse_depths(g, batch) if depth else None,
            )

        return {"source": domain(True), "target": domain(False)}

    return make


@pytest.fixture(scope="session")
def camvid(tmp_path_factory):
    """Eight training and five validation images in CamVid's layout."""
    root = tmp_path_factory.mktemp("camvid")
    for split, count in (("train", 8), ("val", 5)):
        camvid_tree(root, split, count, (32, 48))
    return root


@pytest.fixture(scope="session")
def official(tmp_path_factory):
    """Name -> root of streets in the official layout of that data set, all of the same scenes; not to be changed."""
    root = tmp_path_factory.mktemp("official")
    return {name: export(exported(name, root / name), 0, progress=False) for name in LAYOUTS}


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """Calls a command as a person does, in an empty folder."""
    return CommandLine(monkeypatch, capfd, tmp_path)


def pytest_terminal_summary(terminalreporter):
    """What fuzzers tried, with the number of cases."""
    for report in terminalreporter.getreports("passed"):
        for name, said in report.user_properties:
            if name == "fuzz":
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {said}")
