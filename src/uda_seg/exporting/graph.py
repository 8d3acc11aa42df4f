"""A trained network as a graph: RGB images in [0, 1] in, predictions at their size out, normalisation inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from uda_seg.errors import UserError
from uda_seg.exporting.same_padding import without_same_padding
from uda_seg.models.hrda import HRDASegmentor
from uda_seg.models.lora import merge_adapters
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.trunk import shared_copy
from uda_seg.runs.checkpoint import heads_at_test
from uda_seg.storage.files import first_line

Output = Literal["logits", "probabilities", "labels"]
Size = tuple[int, int]


class Exported(nn.Module):
    """The network used at test and nothing else: one forward over the whole image.

    Args:
        network: a trained segmentor; it is not changed.
        output: see `predictions`.
    """

    def __init__(self, network: Segmentor, output: Output = "logits") -> None:
        super().__init__()
        self.network, self.output = only_at_test(network), output

    def forward(self, image: Tensor) -> Tensor:
        """Predict for images float32 [N, 3, H, W], RGB in [0, 1]."""
        return predictions(self.network(image), self.output)


def predictions(logits: Tensor, output: Output) -> Tensor:
    """Convert logits [N, K, H, W] to `probabilities`, float32 [N, K, H, W], or `labels`, uint8 [N, H, W]."""
    if output == "labels":
        return logits.argmax(1).to(torch.uint8)
    return logits.softmax(1) if output == "probabilities" else logits


def only_at_test(network: Segmentor) -> Segmentor:
    """Copy a network without the heads that only training needs, with adapters merged into their layers.

    Its results are those of the network; layers that no graph of all sizes can hold are replaced by equal ones.
    """
    network = shared_copy(network)
    needed = {*heads_at_test(network), *(("main",) if isinstance(network, HRDASegmentor) else ())}  # its attention
    for name in set(network.heads) - needed:
        del network.heads[name]
    merge_adapters(network)
    without_same_padding(network)
    return network.cpu().eval()


def captured(exported: Exported, size: Size | None) -> ExportedProgram:
    """Capture the forward as a graph, for any number of images.

    Args:
        exported: the network.
        size: height and width of its images; None: any.

    Raises:
        UserError: the network cannot be captured, or for one size alone.
    """
    if size is None and isinstance(exported.network, HRDASegmentor):
        raise UserError(
            "HRDA slides windows over an image, as many as its size needs, so its graph is of one size: add "
            "export.size=[HEIGHT,WIDTH]"
        )
    smallest = exported.network.smallest
    # Odd, coarser than a cell at every stage, and different from each other: nothing about them holds by chance.
    height, width = size or (max(97, smallest | 1), max(161, 2 * smallest + 1))
    shapes = {0: Dim.DYNAMIC} | ({} if size is not None else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    # Without this, comparisons with 1 (of a stage's cells, or of the batch) would become conditions on the size.
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    try:
        with torch.no_grad(), oblivious, quiet():
            return torch.export.export(
                exported,
                (torch.zeros(2, 3, height, width),),
                dynamic_shapes=(shapes,),
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # every operation may refuse in its own way
        said = f"the network cannot be captured as a graph ({first_line(error)})"
        cure = "" if size is not None else "; with a fixed size it may be: add export.size=[HEIGHT,WIDTH]"
        raise UserError(f"{said}{cure}; format=safetensors and format=hub need no graph") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what PyTorch and its exporter say about their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
