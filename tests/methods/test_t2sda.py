"""T2S-DA: the whole step against its plain re-statement, domain generalisation, and the sheet's acceptance checks."""

from __future__ import annotations

import copy

import pytest
import reference_steps as reference
import torch
from test_steps import equal_weights, fit, frozen, run_plain

from data.trees import streets_tree
from numerics import LEFT, assert_same_sums
from uda_seg.config.compose import composed
from uda_seg.data.datasets import SegmentationDataset
from uda_seg.errors import UserError
from uda_seg.methods.class_average import ClassAverage
from uda_seg.methods.labelled import labelled
from uda_seg.methods.options.t2sda import T2SDAOptions
from uda_seg.methods.pull_samples import Pixels, embed
from uda_seg.methods.source_only import SourceOnly
from uda_seg.methods.t2sda import T2SDA
from uda_seg.methods.translation import Translation
from uda_seg.models.norm import batch_norms
from uda_seg.models.style import FILES, RandomStyle, StylePainter, StylePredictor
from uda_seg.runs.build import build_data

OPTIONS = {"queries": 3, "negatives": 6, "temperature": 0.3, "fourier_beta": 0.1, "pull_weight": 0.7}


def test_step_equals_plain_pytorch(double, make_segmentor, make_plan, make_batch):
    batches = [make_batch(seed) for seed in range(3)]
    module = T2SDA(make_segmentor(), make_plan(), T2SDAOptions(proxy_momentum=0.5, **OPTIONS))
    student, score = copy.deepcopy(module.segmentor), torch.full((19,), 0.5)
    context = {"half": 3, "queries": 3, "negatives": 6, "temperature": 0.3, "weight": 0.7, "power": 0.5}
    run_plain(reference.t2sda, student, frozen(student), batches, module.plan, score=score, momentum=0.5, **context)
    fit(module, batches)
    equal_weights(module, student)
    assert_same_sums(module.performance.value, score, share=LEFT)


@pytest.mark.parametrize(
    ("method", "switches"),
    [("t2sda_dacs", (0.0, 0.0, False)), ("t2sda", (0.005, 0.0, True)), ("t2sda_mic", (0.005, 1.0, True))],
)
def test_each_base_has_a_file(method, switches, make_segmentor, make_plan):
    """Feature distance, masked images and rare-class sampling are those of DACS, DAFormer and MIC."""
    config = composed([f"method={method}", "data=gta2cs"])
    options = {key: value for key, value in config.method.items() if key != "_target_"}
    module = T2SDA(make_segmentor(pretrained=True), make_plan(), T2SDAOptions(**options))
    found = (module.options.feature_distance, module.options.mask_weight, config.data.rare_class.enabled)
    assert found == switches
    assert (module.reference is not None) == (switches[0] > 0)


def test_the_pull_reaches_the_student_through_the_translated_image_alone(make_segmentor, make_plan, make_batch):
    module = T2SDA(make_segmentor(), make_plan(), T2SDAOptions(**OPTIONS))
    fit(module, [make_batch()])
    module.zero_grad()
    source, target = make_batch()["source"], make_batch()["target"]
    images = []
    module.translate = lambda image, style: images.append(image.clone().requires_grad_()) or images[0]
    module.pull_terms(labelled(source), target)[0].value.backward()
    assert images[0].grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.segmentor.heads["projection"].parameters())
    assert all(p.grad is None for p in module.teacher.parameters())


def test_the_projection_keeps_statistics_of_its_own(make_segmentor, make_plan, make_batch):
    """Of translated images, which are all it sees, also where the rest remembers others: its teacher may need them."""
    module = T2SDA(make_segmentor(), make_plan(running_statistics="mixed"), T2SDAOptions(**OPTIONS))
    fit(module, [make_batch()])
    norms = batch_norms(module.segmentor.heads["projection"])
    assert len(norms) == 2
    assert all((norm.running_mean != 0).any() for norm in norms)


def test_pulling_an_untranslated_image_to_itself_is_soon_done(make_segmentor, make_plan, make_batch):
    """The sheet's swap test: with x_p = x_s, queries near their prototypes after a few steps."""
    module = T2SDA(make_segmentor(), make_plan(), T2SDAOptions(**OPTIONS))
    fit(module, [make_batch()])
    network, image = module.segmentor.train(), make_batch()["source"].image / 255.0
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    values = []
    for _ in range(25):
        query, _ = embed(network, image)
        label = make_batch()["source"].label[:, ::4, ::4]
        value = module.pull(query, Pixels(query.detach(), label), None)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_weights_at_power_zero_are_uniform(power, make_segmentor, make_plan, make_batch):
    module = T2SDA(make_segmentor(), make_plan(), T2SDAOptions(reweight=power, **OPTIONS))
    fit(module, [make_batch()])
    g = torch.Generator().manual_seed(0)
    unit = [torch.nn.functional.normalize(torch.randn(2, 8, 4, 8, generator=g), dim=1) for _ in range(2)]
    values = []
    for scores in (torch.full((19,), 0.5), torch.linspace(0.1, 0.9, 19)):
        module.performance.value.copy_(scores)
        torch.manual_seed(0)
        values.append(float(module.pull(unit[0], Pixels(unit[1], make_batch()["source"].label[:, ::8, ::8]), None)))
    if power == 0:
        assert values[1] == values[0]
    else:
        assert 0 < values[1] < values[0]


@pytest.mark.parametrize("proxy", ["confidence", "source_iou", "frequency"])
def test_every_proxy_moves_the_scores(proxy, make_segmentor, make_plan, make_batch):
    module = T2SDA(
        make_segmentor(),
        make_plan(),
        T2SDAOptions(proxy=proxy, translated_weight=0.5, prototype_momentum=0.5, **OPTIONS),
    )
    fit(module, [make_batch()])
    score = module.performance.value
    assert ((score >= 0) & (score <= 1)).all()
    assert (score != 0.5).any()
    assert module.prototypes.value.abs().sum() > 0
    assert "train/translated/ce" in module.recorded
    assert "diagnostic/alignment/road" in module.recorded


def test_class_averages_add_up_over_micro_batches_and_ranks():
    g = torch.Generator().manual_seed(0)
    parts = [(torch.rand(4, 2, generator=g), torch.tensor([0.0, 1, 2, 3])) for _ in range(3)]
    whole, split = ClassAverage([4, 2], 0.8, start=0.5), ClassAverage([4, 2], 0.8, start=0.5)
    whole.observe(sum(p[0] for p in parts), sum(p[1] for p in parts))
    for part in parts:
        split.observe(*part)
    whole.move(lambda value: value)
    split.move(lambda value: value / 3)  # a mean over ranks
    torch.testing.assert_close(whole.value, split.value)
    assert (whole.value[0] == 0.5).all()
    expected = 0.8 * 0.5 + 0.2 * sum(p[0][2] for p in parts) / 6
    torch.testing.assert_close(whole.value[2], expected)
    before = whole.value.clone()
    whole.move(lambda value: value)
    assert torch.equal(whole.value, before)  # nothing observed: nothing moves


# ---------------------------------------------------------------------- domain generalisation


@pytest.fixture
def generalisation(tmp_path, monkeypatch):
    """data=streets2dg with every domain in a folder of its own, the target's among them, for nobody to read."""
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
    config = composed(["method=t2sda", "data=streets2dg", "steps=2"])
    domains = {"source": config.data.source} | config.data.validation
    for name, domain in domains.items():
        streets_tree(tmp_path / name, count=4)
        domain.root, domain.size, domain.count = str(tmp_path / name), None, None
        domain.domain = None
    config.data.crop = [32, 48]
    config.data.rare_class.enabled = False
    return config


def test_no_image_but_the_sources_is_read_in_training(generalisation, make_segmentor, make_plan, monkeypatch):
    """The whole of a fit but the validations: also where statistics of a target would be taken, if there were one."""
    read, original = [], SegmentationDataset.read
    monkeypatch.setattr(
        SegmentationDataset, "read", lambda self, index: read.append(self.root.name) or original(self, index)
    )
    generalisation.data.workers = 0
    data = build_data(generalisation)
    monkeypatch.setattr(data, "val_dataloader", list)
    data.setup("fit")
    assert set(data.validation_names) == {"camera", "night_rain", "drizzle"}
    before = len(read)  # a first image of each validation set, for its size
    module = T2SDA(make_segmentor(), make_plan(steps=2, running_statistics="target"), T2SDAOptions(**OPTIONS))
    trainer = fit(module, list(data.train_dataloader()))
    trainer.datamodule = data
    module.on_validation_epoch_start()
    assert len(read) > before
    assert set(read[before:]) == {"source"}
    assert set(module.recorded) >= {"train/source/ce", "train/translated/pull"}
    assert "train/mix/ce" not in module.recorded


def test_one_image_without_a_target_has_none_to_be_translated_towards(make_segmentor, make_plan, make_batch):
    alone = {"source": make_batch(batch=1)["source"]}
    with pytest.raises(UserError, match=r"make data\.source_batch at least twice optimizer\.accumulate"):
        fit(T2SDA(make_segmentor(), make_plan(), T2SDAOptions(**OPTIONS)), [alone])


def test_methods_that_cannot_do_without_a_target_say_so(generalisation):
    generalisation.method = composed(["method=dacs"]).method
    with pytest.raises(UserError, match=r"sets no data\.target"):
        build_data(generalisation)
    assert SourceOnly.needs_target is False


@pytest.mark.parametrize("style", ["fourier", "statistics"])
def test_translation_without_a_target_keeps_images_in_range(style):
    torch.manual_seed(0)
    image = torch.rand(3, 3, 16, 24)
    translated = Translation(style, 0.1, None, 0.5)(image, None)
    assert translated.shape == image.shape
    assert translated.min() >= 0
    assert translated.max() <= 1
    assert not torch.equal(translated, image)
    assert torch.isfinite(Translation(style, 0.1, None, 0.5)(image[:1], None)).all()


# ---------------------------------------------------------------------- the published style augmentor


def style_files(folder, predictor=True):
    torch.manual_seed(0)
    factor = torch.randn(100, 100)
    torch.save({"state_dict_ghiasi": StylePainter().state_dict()}, folder / FILES[0])
    statistics = {"pbn_embedding_mean": torch.randn(1, 100), "pbn_embedding_covariance": factor @ factor.T / 100}
    torch.save({**statistics, "imagenet_embedding_mean": torch.zeros(1, 100)}, folder / FILES[1])
    if predictor:
        torch.save({"state_dict_stylepredictor": StylePredictor().state_dict()}, folder / FILES[2])
    return statistics


def test_styles_are_drawn_from_the_stored_normal_distribution(tmp_path):
    statistics = style_files(tmp_path, predictor=False)
    style = RandomStyle(tmp_path)
    torch.testing.assert_close(style.root @ style.root.T, statistics["pbn_embedding_covariance"], rtol=1e-3, atol=1e-4)
    image, seen = torch.rand(2, 3, 18, 21), []
    style.painter = type("Painter", (), {"to": lambda s, d: lambda x, e: seen.append((x, e)) or x})()
    g = torch.Generator().manual_seed(1)
    painted = style(image, g)
    torch.testing.assert_close(painted, image)
    assert seen[0][0].shape == (2, 3, 20, 24)  # the network halves twice
    noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    expected = 0.5 * (noise @ style.root.T + statistics["pbn_embedding_mean"])  # half way from the average photograph
    torch.testing.assert_close(seen[0][1], expected)


def test_the_published_files_paint(tmp_path):
    style_files(tmp_path)
    translate = Translation("file", 0.01, str(tmp_path), 0.5)
    image = torch.rand(2, 3, 80, 90)
    torch.manual_seed(0)
    first, second = translate(image, None), translate(image, image)
    assert first.shape == image.shape
    assert ((first >= 0) & (first <= 1)).all()
    assert not torch.equal(first, second)  # another style
    assert not first.requires_grad


def test_missing_or_foreign_style_files_are_named(tmp_path, make_segmentor, make_plan):
    with pytest.raises(UserError, match=r"method\.style_weights=FOLDER"):
        T2SDA(make_segmentor(), make_plan(), T2SDAOptions(style="file"))
    with pytest.raises(UserError, match=r"checkpoint_transformer\.pth is missing"):
        RandomStyle(tmp_path)
    style_files(tmp_path, predictor=False)
    torch.save({"state_dict_ghiasi": {"layers.0.conv.weight": torch.zeros(1)}}, tmp_path / FILES[0])
    with pytest.raises(UserError, match=r"checkpoint_transformer\.pth does not fit: layers\.0"):
        RandomStyle(tmp_path)
