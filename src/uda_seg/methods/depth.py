"""Self-supervised depth from sequences and stereo pairs (Monodepth2, Godard et al., ICCV 2019).

Other views are warped by the predicted depth and compared with the image, taking the best view per pixel, leaving out
pixels that are static relative to the camera, and preferring smooth depth where the image is smooth. Losses compare the
original images; the networks see jittered ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.data.sequences import SequenceBatch
from uda_seg.evaluation.depth import DepthEvaluator, DepthScores
from uda_seg.methods.settings import StepPlan
from uda_seg.methods.step import Loss, StepModule
from uda_seg.models.depth import DepthHead, PoseNetwork
from uda_seg.models.segmentor import Segmentor, resize
from uda_seg.ops.augment import draw_strong, strong_augment
from uda_seg.ops.geometry import (
    crop_intrinsics,
    disparity_to_depth,
    flip_intrinsics,
    motion_matrix,
    stereo_motion,
    warp,
)
from uda_seg.ops.image import to_float, upload
from uda_seg.ops.photometric import least_error, photometric_error, smoothness

STEREO_UNITS = 0.1  # stereo baseline in the network's unit of depth


class SelfSupervisedDepth(StepModule):
    """Photometric loss and smoothness, averaged over the decoder's scales.

    Args:
        network: a segmentor with a DepthHead.
        pose: the motion network; None for training on stereo pairs only.
        plan: settings of the run.
        views: names of the entries of `SequenceBatch.views`, in order: previous, next, right.
        targets: names of the validation sets, in loader order.
        scales: number of supervised decoder levels, each at full resolution (Monodepth2: 4).
        smooth: weight of the smoothness, halved with every scale (1e-3).
        auto_mask: leave out pixels that an unwarped view explains better.
        nearest: depth at disparity 1, in units.
        farthest: depth at disparity 0.
        crop: height and width of the depth network's crop; None: the whole image. The pose network always sees the
            whole image.
        flip: flip half of the samples horizontally.
        jitter: strength of the networks' colour jitter, applied with probability 0.5; 0: none. (Monodepth2 jitters hue
            by 0.1 and the rest by 0.2; here one number sets all four.)
        encoder_lr: learning rate of the depth network's encoder relative to the rest (CorDA's authors: 0.1).
        pose_scale: input scale of the pose network (Monodepth2: 1). It processes two pairs per image of the depth
            network; at half the scale it costs half as much.
    """

    def __init__(
        self,
        network: Segmentor,
        pose: PoseNetwork | None,
        plan: StepPlan,
        *,
        views: Sequence[str],
        targets: Sequence[str] = (),
        scales: int = 4,
        smooth: float = 1e-3,
        auto_mask: bool = True,
        nearest: float = 0.1,
        farthest: float = 100.0,
        crop: Sequence[int] | None = None,
        flip: bool = True,
        jitter: float = 0.1,
        encoder_lr: float = 1.0,
        pose_scale: float = 1.0,
    ) -> None:
        super().__init__(plan)
        self.network, self.pose, self.views, self.scales = network, pose, tuple(views), scales
        self.smooth, self.auto_mask, self.nearest, self.farthest = smooth, auto_mask, nearest, farthest
        self.crop, self.flip, self.jitter = crop, flip, jitter
        self.encoder_lr, self.pose_scale = encoder_lr, pose_scale
        self.targets = tuple(targets)
        # Only a known baseline fixes the metric scale.
        self.evaluators = nn.ModuleList(DepthEvaluator(median_scaling=not self.metric) for _ in targets)
        self.scores: dict[str, DepthScores] = {}
        self.scored_step = -1

    def losses(self, batch: SequenceBatch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield photometric error and smoothness of all scales as one tuple, as they share a forward."""
        image, views = to_float(batch.image), list(to_float(batch.views).unbind(1))
        image, views, intrinsics, side = self.mirrored(image, views, batch.intrinsics)
        seen = self.jittered([image, *views])
        motions = [self.motion(name, seen[0], seen[1 + i], side) for i, name in enumerate(self.views)]
        image, views, intrinsics, shown = self.window(image, views, intrinsics, seen[0])
        disparities = self.disparities(shown)
        still = [photometric_error(view, image) for view in views] if self.auto_mask else []
        photometric = smooth = unmasked = torch.zeros((), device=image.device)
        for scale, disparity in enumerate(disparities):
            full = resize(disparity, image.shape[-2:])
            depth = disparity_to_depth(full, self.nearest, self.farthest)
            warped = [warp(view, depth, intrinsics, motion) for view, motion in zip(views, motions, strict=True)]
            noisy = [error + 1e-5 * torch.randn_like(error) for error in still]  # breaks ties, as in static scenes
            error, learns = least_error([photometric_error(w, image) for w in warped], noisy)
            photometric = photometric + error.mean() / len(disparities)
            unmasked = unmasked + learns.float().mean() / len(disparities)
            small = F.interpolate(image, disparity.shape[-2:], mode="area")
            smooth = smooth + smoothness(disparity, small) / (2**scale * len(disparities))
        # The share of pixels kept by the auto-mask is logged only.
        yield Loss("photometric", photometric), Loss("smoothness", smooth, self.smooth), Loss("unmasked", unmasked, 0.0)

    def part(self, batch: SequenceBatch, index: int, parts: int) -> SequenceBatch:
        """Return the `index`-th of `parts` micro-batches."""
        return batch.part(index, parts)

    def rate_and_decay(self, name: str) -> tuple[float, float]:
        """Scale the learning rate of the depth network's encoder by `encoder_lr`."""
        scale = self.encoder_lr if name.startswith("network.encoder.") else 1.0
        return scale, self.plan.optimizer.weight_decay

    # ------------------------------------------------------------------ what the networks see

    def mirrored(
        self, image: Tensor, views: list[Tensor], intrinsics: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Flip half of the samples horizontally, with their cameras; `side` [B] is -1 where right became left."""
        flipped = upload(torch.rand(len(image)) < (0.5 if self.flip else 0.0), image.device)
        here = flipped.view(-1, 1, 1, 1)
        image, *views = (torch.where(here, x.flip(3), x) for x in (image, *views))
        camera = torch.where(here[:, 0], flip_intrinsics(intrinsics, image.shape[3]), intrinsics)
        return image, views, camera, 1.0 - 2.0 * flipped.float()

    def jittered(self, images: list[Tensor]) -> list[Tensor]:
        """Jitter all views of a sample with the same draw, with probability 0.5."""
        draw = draw_strong(
            len(images[0]), device=images[0].device, strength=self.jitter, jitter_probability=0.5, blur_probability=0.0
        )
        return [strong_augment(image, draw) for image in images] if self.jitter > 0 else images

    def motion(self, view: str, image: Tensor, other: Tensor, side: Tensor) -> Tensor:
        """Compute the motion [B, 4, 4] from the image's camera to the view's."""
        if view == "right":
            return stereo_motion(STEREO_UNITS * side)
        assert self.pose is not None, "sequences need a pose network"
        earlier, later = (other, image) if view == "previous" else (image, other)
        axis_angle, translation = self.pose(*(self.network.normalize(self.smaller(x)) for x in (earlier, later)))
        # The network predicts the motion from the earlier camera's frame to the later one's.
        return motion_matrix(axis_angle, translation, invert=view == "previous")

    def smaller(self, image: Tensor) -> Tensor:
        """Resize images [B, 3, H, W] to the pose network's scale."""
        return image if self.pose_scale == 1 else F.interpolate(image, scale_factor=self.pose_scale, mode="area")

    def window(
        self, image: Tensor, views: list[Tensor], intrinsics: Tensor, seen: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
        """Crop a random window of the image, the views and the depth network's input."""
        if self.crop is None:
            return image, views, intrinsics, seen
        height, width = self.crop
        top = int(torch.randint(image.shape[2] - height + 1, ()))
        left = int(torch.randint(image.shape[3] - width + 1, ()))
        cut = [x[:, :, top : top + height, left : left + width] for x in (image, *views, seen)]
        return cut[0], cut[1:-1], crop_intrinsics(intrinsics, top, left), cut[-1]

    def disparities(self, image: Tensor) -> list[Tensor]:
        """Predict disparity of images [B, 3, H, W] in [0, 1] at every supervised scale, finest first."""
        head = self.network.heads["main"]
        assert isinstance(head, DepthHead)
        return head.disparities(self.network.features(image).stages, self.scales)

    # ------------------------------------------------------------------ depth in metres

    def depth(self, image: Tensor, baseline: Tensor) -> Tensor:
        """Predict depth [B, 1, H, W] of images [B, 3, H, W] in [0, 1]: metres after stereo training, else unscaled."""
        depth = disparity_to_depth(self.network.predict(image), self.nearest, self.farthest)
        return depth * (baseline.view(-1, 1, 1, 1) / STEREO_UNITS) if self.metric else depth

    @property
    def metric(self) -> bool:
        """True if depth is in metres, because a stereo baseline was seen."""
        return "right" in self.views

    def on_validation_epoch_start(self) -> None:
        """Reset the measures (Lightning hook)."""
        for evaluator in self.evaluators:
            assert isinstance(evaluator, DepthEvaluator)
            evaluator.reset()

    def validation_step(self, batch: SequenceBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare predictions with exact depth (Lightning hook)."""
        evaluator = self.evaluators[dataloader_idx]
        assert isinstance(evaluator, DepthEvaluator)
        assert batch.depth is not None, "validation has exact depth"
        evaluator.update(self.depth(to_float(batch.image), batch.baseline), batch.depth)

    def on_validation_epoch_end(self) -> None:
        """Compute and log the measures (Lightning hook)."""
        self.scored_step = self.trainer.global_step
        computed = [evaluator.compute() for evaluator in self.evaluators if isinstance(evaluator, DepthEvaluator)]
        self.scores = dict(zip(self.targets, computed, strict=True))
        self.record(
            {f"val/{name}/{key}": value for name, s in self.scores.items() for key, value in s._asdict().items()}
        )
