"""Pictures at validations: which there are, that dashboards get them, and that the training does not notice."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import configured, small_run
from uda_seg import train as command
from uda_seg.callbacks import validation_panels
from uda_seg.callbacks.validation_panels import PANELS
from uda_seg.config.settings import VALIDATION_PANELS

ALL = f"callbacks.validation_panels=[{','.join(VALIDATION_PANELS)}]"


def run(camvid, folder, *overrides):
    words = ("evaluator.times=1", "steps=2", *overrides)
    command.train(configured(*[o for o in small_run(camvid) if "panels" not in o and "steps" not in o], *words), folder)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_the_settings_name_what_there_is():
    assert tuple(PANELS) == VALIDATION_PANELS


def test_a_panel_that_draws_takes_no_random_number_of_the_training(tmp_path, monkeypatch):
    """As HRDA's window is drawn wherever a supervised forward is computed."""
    drawn = []
    monkeypatch.setitem(PANELS, "features", lambda module, data: drawn.append(torch.rand(1)))
    monkeypatch.setattr(validation_panels, "UDAModule", SimpleNamespace)
    monkeypatch.setattr(validation_panels, "as_written", nullcontext)
    plugin = SimpleNamespace(val_step_context=nullcontext)
    trainer = SimpleNamespace(is_global_zero=True, datamodule=None, precision_plugin=plugin)
    before = torch.get_rng_state()
    panels = validation_panels.ValidationPanels(["features"], tmp_path)
    panels.on_validation_epoch_end(trainer, SimpleNamespace(segmentor=torch.nn.Identity()))
    assert len(drawn) == 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("method", "drawn"), [("dacs", {"disagreement", "features", "confidence"}), ("bicl", {"prototypes"})]
)
def test_panels_change_no_weight(method, drawn, camvid, tmp_path, monkeypatch):
    from sklearn import manifold

    monkeypatch.setattr(manifold, "TSNE", partial(manifold.TSNE, max_iter=250))  # the fewest that it takes
    few = () if method == "dacs" else ("method.warmup=0", "method.class_share=0.5")
    chosen = ALL if method == "dacs" else "callbacks.validation_panels=[disagreement,prototypes]"
    plain = run(camvid, tmp_path / "plain", f"method={method}", "callbacks.panels=0", *few)
    seen = run(camvid, tmp_path / "seen", f"method={method}", "callbacks.panels=1", chosen, *few)
    assert all(torch.equal(tensor, seen[name]) for name, tensor in plain.items())
    found = {path.name for path in (tmp_path / "seen" / "panels").iterdir()}
    wanted = {f"{name}_000002.png" for name in drawn}
    assert found - {"step_000001.png", "step_000002.png"} == wanted
    assert not (tmp_path / "plain" / "panels").exists()
    picture = np.array(Image.open(tmp_path / "seen" / "panels" / min(wanted)))
    assert picture.std() > 5
