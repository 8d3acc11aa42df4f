"""Test the options that keep LC-MSM's correlation alive, and the diagnostics of whether it is."""

from __future__ import annotations

import pytest
import torch
from test_steps import fit

from uda_seg.config.compose import composed
from uda_seg.config.schema import resolved
from uda_seg.errors import UserError
from uda_seg.methods import lcmsm
from uda_seg.methods.lcmsm import LCMSM
from uda_seg.methods.options.lcmsm import LCMSMOptions
from uda_seg.methods.settings import TeacherSettings
from uda_seg.models.language import correlate
from uda_seg.runs.checkpoint import settings_of


def opposed(make_segmentor, make_plan, **options):
    """A module whose texts all point away from every feature, which follows a ReLU: by the projection's bias."""
    torch.manual_seed(0)
    module = LCMSM(
        make_segmentor(), make_plan(), LCMSMOptions(text="file", width=8, spatial_start="identity", **options)
    )
    module.setup("fit")
    with torch.no_grad():
        module.projection.bias.fill_(-1000.0)
    return module


@pytest.mark.parametrize("centred", [False, True])
def test_centred_texts_cannot_all_be_opposed_to_a_pixel(centred, make_segmentor, make_plan, make_batch):
    module = opposed(make_segmentor, make_plan, centre_text=centred)
    text = module.text().detach()
    rows = list(module.projection(module.embeddings).detach())
    mean = sum(rows) / len(rows)
    tolerance = 1e-3  # next to a bias of 1000, float32 keeps 6e-5
    assert torch.allclose(text, torch.stack([row - mean for row in rows]), atol=tolerance) == centred
    maps = correlate(torch.rand(2, 8, 4, 4), text, 0.07)
    assert (maps.amax(dim=1) > -tolerance).all() == centred
    fit(module, [make_batch()])
    assert module.projection.weight.grad.any() == centred
    recorded = module.recorded
    assert (recorded["diagnostic/lcmsm/passed"] > 0.2) == centred
    assert (recorded["diagnostic/lcmsm/refined_spread"] > 0.1) == centred
    assert 0 <= recorded["diagnostic/lcmsm/accuracy"] <= 1
    assert recorded["diagnostic/lcmsm/spread"] > 0


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_the_teacher_has_statistics_of_the_head_that_it_is_scored_with(
    batch_norm, make_segmentor, make_plan, make_batch
):
    plan = make_plan(steps=8, teacher=TeacherSettings(alpha=0.5, batch_norm=batch_norm))
    module = LCMSM(make_segmentor(), plan, LCMSMOptions(text="none", width=8))
    fit(module, [make_batch(seed) for seed in range(8)])
    for mine, student in zip(
        *(network.heads["main"].named_buffers() for network in (module.teacher.network, module.segmentor)), strict=True
    ):
        if "running" in mine[0]:
            start = float(mine[0].endswith("var"))
            # The average lags behind by about a step, and the start has left it but for a hundredth.
            assert (mine[1] - student[1]).norm() < 0.5 * (student[1] - start).norm(), mine[0]


def test_without_its_masked_terms_the_language_head_would_not_learn(make_segmentor, make_plan):
    module = LCMSM(make_segmentor(), make_plan(), LCMSMOptions(text="none", width=8, mask_weight=0.0))
    with pytest.raises(UserError, match=r"method\.mask_weight=0: .* say method\.mask_ratio=0"):
        module.setup("fit")
    module.setup("test")


def test_a_main_head_of_another_width_hands_over_nothing(make_segmentor, make_plan, caplog):
    module = LCMSM(make_segmentor(width=8), make_plan(), LCMSMOptions(text="none", width=4))
    before = module.segmentor.head("language").conv_seg.weight.clone()
    with caplog.at_level("INFO"):
        module.start_heads({"language"})
    assert "the language head starts untrained" in caplog.text
    assert torch.equal(module.segmentor.head("language").conv_seg.weight, before)


def test_diagnostics_are_of_steps_that_log(make_segmentor, make_plan, make_batch, monkeypatch):
    seen = []
    module = LCMSM(make_segmentor(), make_plan(steps=3, log_every=3), LCMSMOptions(text="file", width=8))
    monkeypatch.setattr(lcmsm, "correlation_health", lambda *_: seen.append(module.trainer.global_step) or {})
    fit(module, [make_batch(seed) for seed in range(3)])
    assert seen == [0, 2]


def test_the_control_without_text_has_none(make_segmentor, make_plan, make_batch):
    module = LCMSM(make_segmentor(), make_plan(), LCMSMOptions(text="none", width=8, centre_text=True))
    fit(module, [make_batch()])
    assert not [name for name in module.recorded if name.startswith("diagnostic/lcmsm")]


def test_runs_of_versions_without_the_options_count_as_the_same():
    def settings(*overrides):
        return settings_of(resolved(composed(["method=lcmsm", "data=streets", *overrides])))

    older = {k: v for k, v in settings().items() if k not in ("method.centre_text", "method.spatial_start")}
    assert settings() == older
    assert settings("method.centre_text=true") == older | {"method.centre_text": True}
    assert settings("method.spatial_start=identity") == older | {"method.spatial_start": "identity"}
