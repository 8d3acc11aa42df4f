"""Base class of methods: the losses to implement, the data to declare, and common helpers."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from uda_seg.data.batch import DomainBatch
from uda_seg.methods.frozen_trunk import STUDENT, note_replaced_trunk, with_trunk
from uda_seg.methods.options.base import MethodOptions
from uda_seg.methods.parameter_groups import ParameterRules
from uda_seg.methods.scoring import ScoredModule
from uda_seg.methods.settings import Plan
from uda_seg.methods.step import Loss
from uda_seg.models.compilation import check_compiler, compile_network
from uda_seg.models.hrda import ContextView
from uda_seg.models.norm import frozen_statistics
from uda_seg.models.segmentor import Features, Segmentor
from uda_seg.ops.augment import StrongDraw, draw_strong, strong_augment
from uda_seg.ops.losses import IGNORE

__all__ = ["Batch", "Loss", "Plan", "UDAModule"]

log = logging.getLogger(__name__)

Batch = Mapping[str, DomainBatch]


class UDAModule(ScoredModule):
    """Base of all methods.

    Sub-classes implement `losses`. Class attributes declare the data they need: `needs_target` (unlabelled target
    images), `target_optional` (also works with `data.target=null`), `needs_depth` (inverse depth of both domains),
    `supervised_target` (the labelled target *instead of* the source: the oracle). `target_in_step` is false if target
    images are only read between steps.

    Args:
        segmentor: the student network; the method's constructor attaches the heads it needs.
        plan: settings of the run.
        options: options of the method; in sub-classes the annotation names their dataclass.
    """

    target_in_step = True
    target_optional = False
    needs_depth = False
    supervised_target = False

    def __init__(self, segmentor: Segmentor, plan: Plan, options: MethodOptions) -> None:
        super().__init__(segmentor, plan)
        self.options = options
        self.rules = ParameterRules(segmentor, plan.optimizer)
        self.panel: dict[str, Tensor] | None = None

    def on_fit_start(self) -> None:
        """Compile the network if configured, now that all copies of it have been made (Lightning hook)."""
        if self.segmentor.backend is None:
            return
        check_compiler(self.segmentor.backend, self.trainer.strategy.root_device)
        networks = {"student": self.segmentor} | ({} if self.teacher is None else {"teacher": self.teacher.network})
        for network in networks.values():
            compile_network(network)
        log.info("%s compiled by %s: the first steps take minutes", " and ".join(networks), self.segmentor.backend)

    @abstractmethod
    def losses(self, batch: Batch) -> Iterator[Loss | tuple[Loss, ...]]:
        """Yield the loss terms of one batch; terms that share a forward come as one tuple and share one backward."""

    def start_heads(self, missing: set[str]) -> None:
        """Initialise heads for which `init=` found no weights better than randomly; a hook, empty here."""

    def log_images(self, **tensors: Tensor) -> None:
        """Keep the first sample of each tensor for the image panels, if a panel is due at this step."""
        if self.panel is not None:
            self.panel.update({name: tensor[:1].detach().float().cpu() for name, tensor in tensors.items()})

    def log_prediction(self, images: str, logits: Tensor, features: Features) -> None:
        """Show logits [B, C, h, w] as `<images>_prediction`, and HRDA's attention if there is one."""
        self.log_images(**{f"{images}_prediction": logits})
        if self.panel is not None and isinstance(features, ContextView):
            self.log_images(**{f"{images}_attention": features.attention_of(logits)})

    def over_labelled(self, label: Tensor) -> Tensor:
        """Compute the weight [B, H, W] that turns a mean over all pixels into one over all ranks' labelled pixels."""
        share = self.mean_over_ranks((label != IGNORE).float().mean())
        return (1.0 / torch.where(share > 0, share, 1.0)).expand(label.shape)

    def statistics_of_source(self) -> AbstractContextManager[None]:
        """Keep the source from updating running statistics within the block, unless `running_statistics=all`."""
        return nullcontext() if self.plan.running_statistics == "all" else frozen_statistics(self.segmentor)

    def augment(self, image: Tensor) -> Tensor:
        """Apply newly drawn colour jitter and Gaussian blur to images [B, 3, H, W] in [0, 1]."""
        return self.apply_draw(image, draw_strong(len(image), device=image.device))

    def apply_draw(self, image: Tensor, draw: StrongDraw) -> Tensor:
        """Augment a whole batch at once; a separate method, so that the bench can replace it by a loop over images."""
        return strong_augment(image, draw)

    def part(self, batch: Batch, index: int, parts: int) -> Batch:
        """Return the `index`-th of `parts` equal micro-batches of every domain."""
        return {name: domain.part(index, parts) for name, domain in batch.items()}

    def rate_and_decay(self, name: str) -> tuple[float, float]:
        """Assign the groups that `parameter_groups` describes (the step's hook)."""
        return self.rules(name)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Apply the current settings to a resumed run, and complete its weights by a frozen trunk (Lightning hook)."""
        super().on_load_checkpoint(checkpoint)
        encoder = self.segmentor.encoder
        checkpoint["state_dict"] = state = with_trunk(checkpoint, encoder, "the checkpoint")
        note_replaced_trunk(encoder, state, f"{STUDENT}encoder.")
