"""Self-supervised depth: the loss against its plain re-statement, and a scene whose depth it must find."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from uda_seg.data.sequences import SequenceBatch
from uda_seg.methods.depth import SelfSupervisedDepth
from uda_seg.methods.settings import OptimizerSettings, ScheduleSettings, StepPlan
from uda_seg.models.deeplab import ResNet101
from uda_seg.models.depth import DepthHead, PoseNetwork, widen_input
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.small import ResidualEncoder
from uda_seg.ops.geometry import disparity_to_depth, motion_matrix, stereo_motion, warp
from uda_seg.ops.photometric import photometric_error, smoothness

SIZE = (64, 96)
K = torch.tensor([[[40.0, 0, 46.0], [0, 40.0, 30.0], [0, 0, 1]]])


def encoder():
    return ResidualEncoder(widths=(4, 6, 8, 8), blocks=(1, 1, 1, 1))


def network(start=0.05):
    return Segmentor(encoder(), partial(DepthHead, widths=(4, 4, 4, 4, 4), start=start), 1)


def module(views=("right",), steps=4, lr=1e-3, start=0.05, **options):
    torch.manual_seed(0)
    pose = PoseNetwork(encoder(), width=8) if "next" in views else None
    optimizer = OptimizerSettings(lr=lr, weight_decay=0.0)
    plan = StepPlan(steps=steps, seed=0, log_every=1, optimizer=optimizer, schedule=ScheduleSettings(warmup=0.0))
    return SelfSupervisedDepth(network(start), pose, plan, views=views, **options)


def texture(seed=0, width=SIZE[1]):
    coarse = torch.rand(1, 3, 32, width // 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (SIZE[0], width), mode="bilinear", align_corners=False)


def batch_of(views=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, 1 + views, 3, *SIZE), generator=g, dtype=torch.uint8)
    return SequenceBatch(images[:, 0], images[:, 1:], K.repeat(2, 1, 1), torch.full((2,), 0.5))


def fit(module, batches):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=len(batches), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))


@pytest.mark.parametrize("pose_scale", [1.0, 0.5])
def test_the_loss_is_that_of_the_paper_written_out(pose_scale):
    """One sample after the other, one scale after the other; without what is drawn at random."""
    options = {"flip": False, "jitter": 0.0, "scales": 3, "smooth": 0.1, "auto_mask": False, "pose_scale": pose_scale}
    m = module(("previous", "next", "right"), **options).eval()
    batch = batch_of(3)
    photometric, smooth, _ = next(iter(m.losses(batch)))
    x = batch.image / 255.0
    previous, following, right = (batch.views[:, i] / 255.0 for i in range(3))
    disparities = m.network.heads["main"].disparities(m.network.features(x).stages, 3)
    seen = [F.avg_pool2d(m.network.normalize(image), round(1 / pose_scale)) for image in (previous, x, following)]
    before, after = m.pose(seen[0], seen[1]), m.pose(seen[1], seen[2])
    motions = [torch.linalg.inv(motion_matrix(*before)), motion_matrix(*after), stereo_motion(torch.full((2,), 0.1))]
    expected, expected_smooth = [], []
    for scale, disparity in enumerate(disparities):
        assert disparity.shape[-2:] == (SIZE[0] >> scale, SIZE[1] >> scale)
        depth = disparity_to_depth(F.interpolate(disparity, SIZE, mode="bilinear", align_corners=False))
        views = zip((previous, following, right), motions, strict=True)
        errors = torch.cat([photometric_error(warp(v, depth, batch.intrinsics, t), x) for v, t in views], 1)
        expected.append(errors.min(1).values.mean())
        small = F.avg_pool2d(x, 1 << scale) if scale else x
        expected_smooth.append(smoothness(disparity, small) / 2**scale)
    torch.testing.assert_close(photometric.value, sum(expected) / 3, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(smooth.value, sum(expected_smooth) / 3, rtol=1e-4, atol=1e-6)
    assert (photometric.weight, smooth.weight) == (1.0, 0.1)


def test_auto_masking_learns_nothing_from_a_scene_that_moves_along():
    batch = batch_of()
    batch.views[:, 0] = batch.image
    m = module(scales=1, smooth=0.0, flip=False)
    photometric, _, unmasked = next(iter(m.losses(batch)))
    photometric.value.backward()
    assert unmasked.value.item() < 0.05
    free = module(scales=1, smooth=0.0, flip=False, auto_mask=False)
    assert next(iter(free.losses(batch)))[0].value > photometric.value


def test_depth_of_a_wall_is_found_from_its_stereo_pair():
    """A textured wall whose stereo shift is 2 pixels: 0.1 * 40 / 2 = 2 units away. It starts at 1.25 or so."""
    wide = texture(width=SIZE[1] + 2)
    left, right = wide[..., : SIZE[1]], wide[..., 2:]  # what the left camera sees at column u is at u - 2 in the right
    batch = SequenceBatch(
        (left * 255).round().byte(), (right * 255).round().byte()[:, None], K, torch.full((1,), 0.5)
    )  # fmt: skip
    m = module(lr=3e-3, start=0.08, scales=1, jitter=0.0, steps=50)
    before = m.depth(left, batch.baseline).median().item()
    fit(m, [batch] * 50)
    depth = m.eval().depth(left, batch.baseline)[..., 4:-4]  # beyond the border the partner saw nothing
    assert before < 7.5
    assert depth.median().item() == pytest.approx(2 * 5.0, rel=0.12)  # metres: 0.5 m of baseline are 0.1 units


def test_motion_is_learnt_with_depth_and_reaches_both_networks():
    m = module(("previous", "next"))
    fit(m, [batch_of(2)])
    assert all(p.grad is not None for p in m.pose.parameters())
    assert any(p.grad.abs().sum() > 0 for p in m.network.heads.parameters() if p.grad is not None)
    assert not m.metric
    assert module(("right",)).metric


def test_the_camera_moves_with_crop_and_flip():
    m = module(crop=(16, 32))
    image = texture()
    torch.manual_seed(1)
    out, views, camera, seen = m.window(image, [image], K, image)
    top, left = (int(K[0, i, 2] - camera[0, i, 2]) for i in (1, 0))
    assert (top, left) != (0, 0)
    for x in (out, views[0], seen):
        assert torch.equal(x, image[:, :, top : top + 16, left : left + 32])
    many = image.repeat(32, 1, 1, 1)
    out, _, camera, side = m.mirrored(many, [many], K.repeat(32, 1, 1))
    assert set(side.tolist()) == {-1.0, 1.0}
    for i in range(32):
        assert torch.equal(out[i], image[0] if side[i] > 0 else image[0].flip(2))
        assert camera[i, 0, 2].item() == (46.0 if side[i] > 0 else 49.0)


@pytest.mark.parametrize(
    "make",
    [
        encoder,
        lambda: ResNet101(blocks=(1, 1, 1, 1), width=4),
        lambda: MixVisionTransformer("b0", dims=[8, 16, 40, 64], depths=[1, 1, 1, 1]),
    ],
    ids=["small", "resnet", "mit"],
)
def test_any_encoder_gives_disparity_at_full_resolution_and_a_motion(make):
    network = Segmentor(make(), partial(DepthHead, widths=(4, 4, 4, 4, 4)), 1)
    x = torch.rand(1, 3, *SIZE)
    maps = network.heads["main"].disparities(network.features(x).stages, 4)
    assert network.predict(x).shape == (1, 1, *SIZE)
    assert [round(maps[0].shape[3] / m.shape[3]) for m in maps] == [1, 2, 4, 8]
    assert all(m.min() > 0 and m.max() < 1 for m in maps)
    assert maps[0].median().item() == pytest.approx(0.05, abs=0.03)
    axis_angle, translation = PoseNetwork(make(), width=8)(x, x)
    assert axis_angle.shape == translation.shape == (1, 3)


def test_a_widened_input_gives_for_equal_images_what_it_gave_for_one():
    narrow, wide = encoder().eval(), encoder().eval()
    wide.load_state_dict(narrow.state_dict())
    widen_input(wide, 2)
    x = torch.rand(1, 3, *SIZE)
    torch.testing.assert_close(wide(torch.cat([x, x], 1))[-1], narrow(x)[-1])
