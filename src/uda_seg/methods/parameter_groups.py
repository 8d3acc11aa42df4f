"""Learning rate and weight decay of each parameter: DAFormer's groups, and those of fine-tuned vision transformers."""

from __future__ import annotations

from uda_seg.errors import UserError
from uda_seg.methods.settings import OptimizerSettings
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.trunk import depth_of, layer_ids, prefix_of, undecayed, vit_of

ENCODER, HEADS = "segmentor.encoder.", "segmentor.heads."


class ParameterRules:
    """Rates and decays by parameter.

    - Heads have `head_lr_multiplier`, and so has what an encoder adds to a pretrained transformer (its pyramid).
    - In a plain vision transformer, layer i of d has layer_decay ** (d + 1 - i) (Bao et al. 2022, BEiT), where the
        embeddings are layer 0 and the last block is layer d. Tokens, position embedding, LayerScale, norms and biases
        have no weight decay. Both are timm's grouping.
    - Tokens that our own modules learn (`undecayed`: EoMT's queries, the levels of the adapter) have no weight decay.
    - In other encoders the layers with `norm` in their names have no weight decay, MiT's layer norms; other biases, the
        batch norm of convolutional encoders (`bn`) and that of the decoder have, as in the released DAFormer.

    Args:
        segmentor: the student.
        settings: of the optimiser.

    Raises:
        UserError: layer-wise decay of an encoder without layers.
    """

    def __init__(self, segmentor: Segmentor, settings: OptimizerSettings) -> None:
        encoder = segmentor.encoder
        vit = vit_of(encoder)
        if vit is None and settings.layer_decay != 1:
            raise UserError(
                f"optimizer.layer_decay={settings.layer_decay} is of plain vision transformers (model=vit): this "
                "network has no blocks; leave it out"
            )
        self.settings = settings
        self.prefix = ENCODER + ("" if vit is None else prefix_of(encoder, vit))
        self.layers = {} if vit is None else layer_ids(vit)
        self.depth = 0 if vit is None else depth_of(vit)
        self.vectors = {f"{ENCODER}{name}" for name, p in encoder.named_parameters() if p.ndim <= 1}
        self.undecayed = set() if vit is None else undecayed(vit)
        modules = segmentor.named_modules(prefix="segmentor")
        self.tokens = {f"{place}.{name}" for place, module in modules for name in getattr(module, "undecayed", ())}

    def __call__(self, name: str) -> tuple[float, float]:
        """Return the learning rate relative to `optimizer.lr`, and the weight decay, of a parameter by dotted name."""
        scale, decay = self._usual(name)
        return scale, 0.0 if name in self.tokens else decay

    def _usual(self, name: str) -> tuple[float, float]:
        settings = self.settings
        if not name.startswith(ENCODER):
            return settings.head_lr_multiplier if name.startswith(HEADS) else 1.0, settings.weight_decay
        if not self.layers:
            return 1.0, 0.0 if "norm" in name else settings.weight_decay
        if not name.startswith(self.prefix):
            return settings.head_lr_multiplier, 0.0 if name in self.vectors else settings.weight_decay
        own = name.removeprefix(self.prefix)
        scale = settings.layer_decay ** (self.depth + 1 - self.layers[own])
        return scale, 0.0 if own in self.undecayed else settings.weight_decay
