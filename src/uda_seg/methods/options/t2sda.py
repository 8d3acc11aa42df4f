"""Options of T2S-DA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from uda_seg.methods.options.self_training import SelfTrainingOptions
from uda_seg.methods.translation import Style
from uda_seg.options.constraints import Channels, FilePath, Fraction, Interval, LossWeight, Power, Temperature


@dataclass(frozen=True, kw_only=True)
class T2SDAOptions(SelfTrainingOptions):
    """Options of T2S-DA on top of those of its base, DACS, DAFormer or MIC."""

    pull_weight: LossWeight = 0.1
    """Weight lambda of L_pull (ours; ablate 0.05 | 0.1 | 0.5 | 1)."""

    temperature: Temperature = 0.2
    """Temperature tau of the contrast (ours)."""

    queries: Annotated[int, Interval(1, 2**16)] = 64
    """Pixels drawn per class and image (ours), so 128 at the usual two images."""

    negatives: Annotated[int, Interval(2, 2**20)] = 1024
    """Pixels of other classes per query, half from the source and half from the target (ours); drawn from the query's
    own pair of images, so that ranks exchange no pixels."""

    width: Channels | None = None
    """Channels of the projection g (ours); null: as the fused map, at most 256."""

    style: Style = "fourier"
    """Translation of source images: `fourier` (paper's figure), `statistics` of the channels (ours), or `file`: the
    published style augmentor, from `style_weights`."""

    fourier_beta: Annotated[float, Interval(0, 0.5, open_high=True)] = 0.01
    """Half width of the Fourier window relative to the shorter side (measured in the paper's figure: 5 of 512 rows)."""

    style_weights: FilePath | None = None
    """Folder of the published style augmentor, for `style=file`."""

    style_alpha: Fraction = 0.5
    """Strength of the style augmentor (released)."""

    translated_weight: LossWeight = 0.0
    """Weight of the cross-entropy on translated images (the paper's figure shows none)."""

    reweight: Power = 0.5
    """Power beta of w_c = ((1 - r_c) / max_j (1 - r_j))^beta (ours); 0 is uniform."""

    proxy: Literal["confidence", "source_iou", "frequency"] = "confidence"
    """Measure of the performance r_c of a class (ours): the teacher's `confidence` where it predicts the class on the
    target, the student's `source_iou` on translated images, or the class's `frequency` in the source."""

    proxy_momentum: Fraction | None = None
    """Momentum of r_c's moving average, which starts at 0.5 (ours); null: the teacher's alpha."""

    prototype_momentum: Fraction = 0.0
    """Momentum of a prototype memory (ours); 0: prototypes of the batch."""

    target_keys: Literal["confident", "all"] = "confident"
    """Pixels that serve as target negatives (ours): `confident` ones, above the teacher's threshold and not in the
    margins, or `all`."""
