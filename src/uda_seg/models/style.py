"""Style augmentation with published weights (Jackson et al., CVPR Workshops 2019).

An arbitrary style transfer network (Ghiasi et al., BMVC 2017) renders an image in the style of a 100-dimensional
embedding, drawn from a normal distribution fitted to embeddings of paintings. The weights are three files of
`philipjackson/style-augmentation`, which T2S-DA's authors use for domain generalisation; they are not included here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC

from uda_seg.errors import UserError
from uda_seg.models.weights import check_tensors, read_tensors

EMBEDDING = 100
STATISTICS = ("pbn_embedding_mean", "pbn_embedding_covariance", "imagenet_embedding_mean")
FILES = ("checkpoint_transformer.pth", "checkpoint_embeddings.pth", "checkpoint_stylepredictor.pth")


class PlainConv(nn.Module):
    """Reflection padding, convolution, instance norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.margin = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H / stride, W / stride]; the style is unused."""
        return F.relu(F.instance_norm(_convolve(x, self.conv, self.margin)))


class StyledConv(nn.Module):
    """As `PlainConv`, after 2x up-sampling, with a scale and shift per channel that depend on the style."""

    def __init__(self, inputs: int, outputs: int, kernel: int, enlarge: bool = True, activate: bool = True) -> None:
        super().__init__()
        self.margin, self.enlarge, self.activate = kernel // 2, enlarge, activate
        self.conv = nn.Conv2d(inputs, outputs, kernel)
        self.fc_beta = nn.Linear(EMBEDDING, outputs)
        self.fc_gamma = nn.Linear(EMBEDDING, outputs)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map [B, inputs, H, W], [B, 100] to [B, outputs, 2 H, 2 W]."""
        x = F.interpolate(x, scale_factor=2.0) if self.enlarge else x
        x = _restyle(_convolve(x, self.conv, self.margin), self.fc_gamma(style), self.fc_beta(style))
        return F.relu(x) if self.activate else x


class StyledBlock(nn.Module):
    """Two styled 3x3 convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        self.fc_beta1, self.fc_gamma1 = nn.Linear(EMBEDDING, width), nn.Linear(EMBEDDING, width)
        self.fc_beta2, self.fc_gamma2 = nn.Linear(EMBEDDING, width), nn.Linear(EMBEDDING, width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map [B, width, H, W], [B, 100] to [B, width, H, W]."""
        y = F.relu(_restyle(_convolve(x, self.conv1, 1), self.fc_gamma1(style), self.fc_beta1(style)))
        return x + _restyle(_convolve(y, self.conv2, 1), self.fc_gamma2(style), self.fc_beta2(style))


def _convolve(x: Tensor, conv: nn.Conv2d, margin: int) -> Tensor:
    out: Tensor = conv(F.pad(x, (margin,) * 4, mode="reflect"))
    return out


def _restyle(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


class StylePainter(nn.Module):
    """Style transfer network: images [B, 3, H, W] in [0, 1], H and W multiples of 4, and styles [B, 100]."""

    def __init__(self) -> None:
        super().__init__()
        down = [PlainConv(3, 32, 9), PlainConv(32, 64, 3, 2), PlainConv(64, 128, 3, 2)]
        up = [StyledConv(128, 64, 3), StyledConv(64, 32, 3), StyledConv(32, 3, 9, enlarge=False, activate=False)]
        self.layers = nn.ModuleList([*down, *(StyledBlock(128) for _ in range(5)), *up])

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        """Render images [B, 3, H, W] in [0, 1] in the given styles."""
        for layer in self.layers:
            image = layer(image, style)
        return image.sigmoid()


class StylePredictor(nn.Module):
    """Style predictor: Inception-v3 up to Mixed_6e, average pooling, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, kernel_size=3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_5b = InceptionA(192, pool_features=32)
        self.Mixed_5c = InceptionA(256, pool_features=64)
        self.Mixed_5d = InceptionA(288, pool_features=64)
        self.Mixed_6a = InceptionB(288)
        for name, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            self.add_module(f"Mixed_6{name}", InceptionC(768, channels_7x7=width))
        self.fc = nn.Linear(768, EMBEDDING)

    def forward(self, image: Tensor) -> Tensor:
        """Predict styles [B, 100] of images [B, 3, H, W] in [0, 1], at least 75 pixels high and wide."""
        x = 2.0 * image - 1.0  # Inception's input range; the released code's two-step version is slightly off in blue
        for name, layer in self.named_children():
            if name == "fc":
                break
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        style: Tensor = self.fc(x.mean((2, 3)))
        return style


class RandomStyle:
    """Random style augmentation; not a module, so that checkpoints do not contain it.

    Args:
        folder: folder of the three files. Without the predictor's file, the mean embedding of photographs replaces each
            image's own style, the released code's other choice.
        alpha: interpolation from the image's own style (0) to the random one (1); 0.5 in the papers.

    Raises:
        UserError: a file is missing, or does not fit.
    """

    def __init__(self, folder: str | Path, alpha: float = 0.5) -> None:
        painter, embeddings, predictor = (Path(folder).expanduser() / name for name in FILES)
        for path in (painter, embeddings):
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: method.style_weights must be the folder of {', '.join(FILES)} from "
                    "github.com/philipjackson/style-augmentation, or choose method.style=fourier"
                )
        self.alpha = alpha
        self.painter = _load(StylePainter(), read_tensors(painter), "state_dict_ghiasi", painter)
        self.predictor: nn.Module | None = None
        if predictor.is_file():
            content = read_tensors(predictor)
            self.predictor = _load(StylePredictor(), content, "state_dict_stylepredictor", predictor)
        found = {name: value for name, value in read_tensors(embeddings).items() if isinstance(value, Tensor)}
        sizes = (EMBEDDING, EMBEDDING**2, EMBEDDING)
        missing = [n for n, size in zip(STATISTICS, sizes, strict=True) if n not in found or found[n].numel() != size]
        if missing:
            raise UserError(f"{embeddings} has no {missing[0]} of its size: it is no file of style-augmentation")
        check_tensors(found, {name: torch.zeros(found[name].shape) for name in STATISTICS}, embeddings)
        mean, covariance, typical = (found[name] for name in STATISTICS)
        self.mean, self.typical = mean.reshape(1, EMBEDDING).float(), typical.reshape(1, EMBEDDING).float()
        vectors, variances, _ = torch.linalg.svd(covariance.reshape(EMBEDDING, EMBEDDING).double())
        self.root = (vectors * variances.sqrt()).float()

    @torch.no_grad()
    def __call__(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Render images [B, 3, H, W] in [0, 1], each in its own random style; any H and W."""
        device, (height, width) = image.device, image.shape[-2:]
        noise = torch.randn(len(image), EMBEDDING, generator=generator, device=device)
        style = noise @ self.root.to(device).T + self.mean.to(device)
        own = self.typical.to(device) if self.predictor is None else self.predictor.to(device)(image)
        fitting = F.pad(image, (0, -width % 4, 0, -height % 4), mode="replicate")
        painted: Tensor = self.painter.to(device)(fitting, torch.lerp(own.expand_as(style), style, self.alpha))
        return painted[..., :height, :width]


def _load(network: nn.Module, content: Mapping[str, object], key: str, path: Path) -> nn.Module:
    inner = content.get(key, content)
    found: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    wanted = network.state_dict()
    check_tensors(found, wanted, path)
    wrong = [n for n, tensor in wanted.items() if n not in found or found[n].shape != tensor.shape]
    wrong = [n for n in wrong if not n.endswith("num_batches_tracked")]  # files older than batch norm's counter
    if wrong:
        raise UserError(f"{path} does not fit: {wrong[0]} is missing or of another size")
    network.load_state_dict({name: found.get(name, wanted[name]) for name in wanted})
    return network.requires_grad_(False).eval()
