"""What the recipes of BiCL take over from its release, against slow re-statements: contrast, terms, static labels."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_steps import fit

from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.methods.bicl import BiCL
from uda_seg.methods.options.bicl import BiCLOptions
from uda_seg.methods.released.bicl import ReleasedBiCL, ReleasedBiCLOptions
from uda_seg.methods.released.repeated_sgd import RepeatedSGD, repeats_of
from uda_seg.methods.settings import OptimizerSettings
from uda_seg.methods.sgd import SteadySGD
from uda_seg.methods.static_labels import class_thresholds
from uda_seg.models.deeplab import DeepLabV2Head, ResNet101
from uda_seg.models.segmentor import Segmentor
from uda_seg.ops.confident import LEVELS, certainty, histogram, select, top_share
from uda_seg.ops.contrast import similarity, transfer_labels
from uda_seg.ops.prototypes import class_sums

RELEASED = {"feature": "logits", "absent": "opposite", "resolution": "labels"}


PLAIN = {"feature": "fused", "absent": "masked", "entropy_weight": 0.0, "resolution": "features", "source_ce": "all"}
PLAIN |= {"encoder_updates": "once", "stem": "shared"}


def half_released(segmentor, plan, **options):
    """BiCL with the named ones of the release's habits."""
    return ReleasedBiCL(segmentor, plan, ReleasedBiCLOptions(**{**PLAIN, **options}))


def test_without_its_habits_the_release_is_the_paper(make_segmentor, make_plan, make_batch):
    batches = [make_batch(seed) for seed in range(2)]
    batches[1]["target"].pseudo = batches[1]["source"].label.flip(0)
    plain = BiCL(make_segmentor(), make_plan(), BiCLOptions(warmup=0.5))
    released = half_released(make_segmentor(), make_plan(), warmup=0.5)
    for module in (plain, released):
        fit(module, batches)
    assert plain.recorded == released.recorded
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, released.state_dict()[name]), name
    habits = {f.name: f.default for f in dataclasses.fields(ReleasedBiCLOptions) if f.name in PLAIN}
    assert habits == {
        **RELEASED,
        "entropy_weight": 0.4,
        "source_ce": "labelled",
        "encoder_updates": "released",
        "stem": "own",
    }


def corner(place, cells, pixels):
    """The pixel that stands for a cell, and the other way round: the older nearest rounds down, no half is added."""
    return min(math.floor(place * pixels / cells), pixels - 1)


def one_way(f, y_f, g, y_g, tau):
    """One pair, one direction, all in float64: pixels of the first image against prototypes of the second.

    Labels are sampled for the cells; a prototype is a class's mean feature, zero where there is none; cosines, of which
    an exact zero counts as -1, are looked up for every pixel of the label; cross-entropy over those of shared classes.
    """
    height, width = y_f.shape
    h, w = f.shape[1:]

    def cells(y):
        return [[int(y[corner(i, h, height), corner(j, w, width)]) for j in range(w)] for i in range(h)]

    mine, theirs = cells(y_f), cells(y_g)
    prototypes = []
    for c in range(19):
        members = [g[:, i, j] for i in range(h) for j in range(w) if theirs[i][j] == c]
        prototypes.append(sum(members) / len(members) if members else torch.zeros(len(g), dtype=torch.float64))
    shared = {c for row in mine for c in row} & {c for row in theirs for c in row} - {255}
    losses = []
    scores = {}
    for i in range(h):
        for j in range(w):
            cosines = []
            for p in prototypes:
                length = f[:, i, j].norm() * p.norm()
                cosines.append((f[:, i, j] * p).sum() / length if length > 0 else torch.tensor(-1.0).double())
            scores[i, j] = torch.stack(cosines) / tau
    for y in range(height):
        for x in range(width):
            c = int(y_f[y, x])
            if c in shared:
                s = scores[corner(y, height, h), corner(x, width, w)]
                losses.append(s.logsumexp(0) - s[c])
    return sum(losses) / len(losses) if losses else f.sum() * 0


def patches(seed, height, width):
    """Labels uint8 [2, height, width] in patches of six classes and 255, to which no grid of cells is aligned."""
    g = torch.Generator().manual_seed(seed)
    grid = torch.randint(0, 7, (2, 5, 6), generator=g)
    label = torch.where(grid == 6, 255, grid).to(torch.uint8)
    return label.repeat_interleave(4, 1).repeat_interleave(5, 2)[:, 1 : height + 1, 2 : width + 2]


def test_contrast_over_pixels_is_the_released_one(make_segmentor, make_plan):
    """Loss and gradient, on features and labels that have nothing to do with each other."""
    module = half_released(make_segmentor(), make_plan(), until="backward", temperature=0.1, **RELEASED)
    g = torch.Generator().manual_seed(5)
    f_s, f_t = (torch.randn(2, 9, 3, 5, generator=g, requires_grad=True) for _ in range(2))
    y_s, y_t = patches(1, 17, 23), patches(2, 17, 23)
    terms = module.contrast(f_s, y_s, f_t, y_t, torch.ones_like(y_t, dtype=torch.bool))
    sum(term.value * term.weight for term in terms).backward()
    slow_s, slow_t = (f.detach().double().requires_grad_() for f in (f_s, f_t))
    forward = sum(one_way(slow_t[b], y_t[b], slow_s[b], y_s[b], 0.1) for b in range(2)) / 2
    backward = sum(one_way(slow_s[b], y_s[b], slow_t[b], y_t[b], 0.1) for b in range(2)) / 2
    (0.2 * forward + 0.2 * backward).backward()
    for term, slow in zip(terms, (forward, backward), strict=True):
        # float32 sums of some hundred terms of up to 20.
        assert term.value.item() == pytest.approx(slow.item(), rel=1e-5)
    for mine, slow in ((f_s.grad, slow_s.grad), (f_t.grad, slow_t.grad)):
        torch.testing.assert_close(mine.double(), slow, rtol=1e-4, atol=1e-6 * slow.abs().max().item())


def test_contrast_over_cells_is_another(make_segmentor, make_plan):
    """The default goes by the labels at the cells' centres: the option matters."""
    g = torch.Generator().manual_seed(5)
    f_s, f_t = torch.randn(2, 2, 9, 3, 5, generator=g)
    y_s, y_t = patches(1, 17, 23), patches(2, 17, 23)
    values = []
    for options in (RELEASED, {**RELEASED, "resolution": "features"}):
        module = half_released(make_segmentor(), make_plan(), until="backward", **options)
        terms = module.contrast(f_s, y_s, f_t, y_t, torch.ones_like(y_t, dtype=torch.bool))
        values.append([term.value.item() for term in terms])
    assert abs(values[0][0] - values[1][0]) > 1e-2 < abs(values[0][1] - values[1][1])


def test_dynamic_labels_are_transferred_to_pixels(make_segmentor, make_plan):
    """Where a pixel has no static label it takes the dynamic one of its cell."""
    shown = {}
    plan = make_plan(crop=(17, 23))
    module = half_released(make_segmentor(), plan, dynamic_threshold=0.06, temperature=0.5, **RELEASED)
    module.log_images = lambda **tensors: shown.update(tensors)
    g = torch.Generator().manual_seed(6)
    f_s, f_t = torch.randn(2, 2, 19, 3, 5, generator=g)
    y_s, y_f = patches(3, 17, 23), patches(4, 17, 23)
    trusted = torch.ones_like(y_f, dtype=torch.bool)
    trusted[:, 12:] = False
    y_f[:, 3:] = 255
    module.contrast(f_s, y_s, f_t, y_f, trusted)
    small = torch.stack([y_s[:, corner(i, 3, 17), corner(j, 5, 23)] for i in range(3) for j in range(5)], 1)
    rho = class_sums(f_s, small.view(2, 3, 5), 19)
    y_d = transfer_labels(similarity(f_t, rho.mean, rho.present, 0.5, "farthest"), 0.06)
    expected = y_f.clone()
    for b, y, x in torch.nonzero((y_f == 255) & trusted).tolist():
        expected[b, y, x] = y_d[b, corner(y, 17, 3), corner(x, 23, 5)]
    assert torch.equal(shown["hybrid_label"], expected)
    assert module.diagnostics["labelled/hybrid"] > module.diagnostics["labelled/static"] > 0


@pytest.fixture
def recorded(make_segmentor, make_plan, make_batch):
    """Losses of one step with the released options, the network before it, and the batch."""
    batch = make_batch(1)
    batch["target"].pseudo = batch["source"].label.flip(0).clone()
    batch["target"].pseudo[:, :7] = 255
    options = {"warmup": 0.0, "until": "backward", "entropy_weight": 0.4, "source_ce": "labelled", **RELEASED}
    module = half_released(make_segmentor(), make_plan(), **options)
    for dropout in (m for m in module.segmentor.modules() if isinstance(m, torch.nn.Dropout2d)):
        dropout.p = 0.0
    torch.nn.init.normal_(module.segmentor.heads["main"].conv_seg.weight)  # decided, and so unlike between cells
    network = copy.deepcopy(module.segmentor).train()
    fit(module, [batch])
    return module.recorded, network, batch


def test_the_terms_of_the_released_trainer(recorded):
    """Cross-entropy over labelled pixels; entropy, with its double softmax, of the predictions at the images' size."""
    values, network, batch = recorded
    for domain, label in (("source", batch["source"].label), ("target", batch["target"].pseudo)):
        image = batch[domain].image / 255.0
        with torch.no_grad():
            logits = network.heads["main"](network.encoder((image - network.mean) / network.std)).double()
        logits = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
        odds = logits.exp() / logits.exp().sum(1, keepdim=True)
        picked = [-odds[b, int(c), y, x].log() for (b, y, x), c in np.ndenumerate(label.numpy()) if c != 255]
        assert values[f"train/{domain}/ce"] == pytest.approx((sum(picked) / len(picked)).item(), rel=1e-5)
        again = odds.exp() / odds.exp().sum(1, keepdim=True)
        entropy = -(odds * again.log()).sum(1).mean().item()
        assert values[f"train/{domain}/entropy"] == pytest.approx(entropy, rel=1e-5)


def test_an_encoder_that_the_release_does_not_repeat_is_refused(make_segmentor, make_plan):
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=1e-3))
    with pytest.raises(UserError, match=r"say method\.encoder_updates=once"):
        half_released(make_segmentor(), plan, encoder_updates="released").configure_optimizers()


def test_the_encoder_is_updated_as_often_as_the_release_lists_it(make_plan, make_batch):
    """Both first stages are listed like the shared ones; BiCL's code lists its encoder as CorDA's does."""
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=1e-3))
    network = Segmentor(ResNet101(blocks=(1, 1, 1, 1), width=4), DeepLabV2Head, 19)
    module = half_released(network, plan, encoder_updates="released", feature="logits", stem="own")
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, RepeatedSGD)
    repeats = {id(p): group["repeats"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: repeats[id(p)] for name, p in module.named_parameters()}
    for stage in ("segmentor.encoder.layer1", "source_stem.stage.2"):
        assert found[f"{stage}.0.conv2.weight"] == 3
        assert found[f"{stage}.0.downsample.0.weight"] == 4
    for name in (
        "segmentor.encoder.conv1.weight",
        "source_stem.stage.0.weight",
        "segmentor.heads.main.conv2d_list.0.bias",
    ):
        assert found[name] == repeats_of(name) == 1


@pytest.mark.parametrize("updates", ["once", "released"])
def test_what_trains_from_the_first_round_on_has_no_momentum_before(updates, make_plan, make_batch):
    """The source's own stem has no gradient in the warm-up, while the rest of its group has."""
    plan = make_plan(optimizer=OptimizerSettings(name="sgd", lr=1e-3))
    network = Segmentor(ResNet101(blocks=(1, 1, 1, 1), width=4), DeepLabV2Head, 19)
    module = half_released(network, plan, warmup=0.5, encoder_updates=updates, stem="own", **RELEASED)
    batches = [make_batch(seed) for seed in range(4)]
    for batch in batches[2:]:
        batch["target"].pseudo = batch["source"].label.flip(0)
    stems = []
    finish = module.finish_step
    module.finish_step = lambda: (finish(), stems.append(copy.deepcopy(module.source_stem.stage[0].weight)))
    fit(module, batches)
    assert not torch.equal(stems[0], stems[1])  # the copy at the end of the warm-up
    assert not torch.equal(stems[1], stems[2])
    state = module.optimizers().state[module.source_stem.stage[0].weight]
    assert state["momentum_buffer"].abs().sum() > 0


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_late_gradient_is_updated_as_in_plain_sgd(momentum):
    pair = [[torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)] for _ in range(2)]
    settings = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01}
    ours, plain = SteadySGD(pair[0], **settings, fused=True), torch.optim.SGD(pair[1], **settings, foreach=False)
    for step in range(4):
        for optimizer, parameters in ((ours, pair[0]), (plain, pair[1])):
            for parameter in parameters[: 1 + (step > 1)]:
                parameter.grad = parameter.detach() ** 2 + step
            optimizer.step()
    for mine, theirs in zip(*pair, strict=True):
        torch.testing.assert_close(mine, theirs)  # fused kernels may contract products and sums


# ---------------------------------------------------------------------- static labels


def released_labels(probability, share):
    """CCM's and BiCL's rule on probabilities float64 [N, K, H, W], image by image and class by class.

    A class's threshold is the confidence at place floor(share x count) from the top of all pixels that are predicted as
    it; a pixel is labelled where the probability of *any* class reaches that class's threshold, or where its own lies
    above the confidence at place floor(share x pixels) of its image. (The release takes every fifth pixel for the
    first; all are taken here.) Returns labels and thresholds.
    """
    count, classes, height, width = probability.shape
    confidence, predicted = probability.max(1), probability.argmax(1)
    thresholds = []
    for c in range(classes):
        found = sorted(confidence[predicted == c].tolist())
        thresholds.append(found[-int(len(found) * share)] if found else math.inf)
    labels = np.full(predicted.shape, 255)
    for n in range(count):
        ordered = sorted(confidence[n].ravel().tolist(), reverse=True)
        of_image = ordered[int(share * height * width) - 1]
        for y in range(height):
            for x in range(width):
                passes = any(probability[n, c, y, x] >= thresholds[c] for c in range(classes))
                if passes or confidence[n, y, x] > of_image:
                    labels[n, y, x] = predicted[n, y, x]
    return labels, thresholds


def our_labels(logits, share):
    """The same by the operations that the rounds use."""
    found, classes = certainty(logits), logits.shape[1]
    of_class = top_share(histogram(found.label, found.level, classes), share)
    of_image = torch.cat([top_share(histogram(torch.zeros_like(y), level, 1), share)
                          for y, level in zip(found.label, found.level, strict=True)])  # fmt: skip
    return select(found.label, found.level, of_class, of_image).numpy()


@pytest.mark.parametrize(("scale", "below_half"), [(1.0, True), (4.0, False)])
def test_static_labels_are_the_released_ones_but_for_what_is_said(scale, below_half):
    """Two pixels at a threshold; and, where a class's threshold is below one half, those that pass by another class."""
    logits = torch.randn(4, 5, 20, 25, generator=torch.Generator().manual_seed(9)) * scale
    if below_half:
        logits[:, 4] *= 0.1  # a class that is predicted where nothing else is likely, and is second best elsewhere
    share = 0.1
    probability = logits.double().softmax(1).numpy()
    theirs, thresholds = released_labels(probability, share)
    ours = our_labels(logits, share)
    both = (ours != 255) & (theirs != 255)
    assert (ours[both] == theirs[both]).all()
    assert (min(thresholds) < 0.5) == below_half
    # Ours keeps at least the share, theirs at most: the pixel at a threshold, of a class or of an image. Certainties
    # are compared in steps, so a neighbour in rank may be one with it.
    more = (ours != 255) & (theirs == 255)
    assert more.sum() <= 5 + 4 + 3
    # The rest of theirs passed by a class that is not the most probable one, which then is less than one half sure.
    less = np.argwhere((ours == 255) & (theirs != 255))
    for n, y, x in less:
        others = [c for c in range(5) if c != theirs[n, y, x] and probability[n, c, y, x] >= thresholds[c]]
        assert others
        assert all(thresholds[c] < 0.5 for c in others)
    assert (len(less) > 0) == below_half


def test_classes_that_the_source_lacks_are_labelled_by_their_image_alone():
    """The release sets the thresholds of terrain, truck and train to 1; the share of an image takes any class."""
    sixteen = CITYSCAPES.subset("16")
    level = torch.full((1, 1, 19), 100, dtype=torch.int16)
    label = torch.arange(19, dtype=torch.uint8).view(1, 1, 19)
    thresholds = class_thresholds(histogram(label, level, 19), 1.0, sixteen)
    kept = select(label, level, thresholds, torch.tensor([LEVELS]))
    assert set(kept.flatten().tolist()) == {*sixteen, 255}
    assert torch.equal(select(label, level, thresholds, torch.tensor([100])), label)
