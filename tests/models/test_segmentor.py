"""The Segmentor's contract: names, sizes, normalisation, loss, gradients, precision."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.segmentor import Encoder, Segmentor
from uda_seg.models.small import ResidualEncoder
from uda_seg.models.two_task import Tasks

CLASSES = 5


def small_segmentor() -> Segmentor:
    torch.manual_seed(0)
    encoder = ResidualEncoder(widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1))
    return Segmentor(encoder, partial(DAFormerHead, width=8), CLASSES)


class Identity(Encoder):
    channels = (3,)
    strides = (1,)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]


def test_parameters_are_named_by_encoder_and_head() -> None:
    names = dict(small_segmentor().named_parameters())
    assert {name.split(".")[0] for name in names} == {"encoder", "heads"}
    assert {name.split(".")[1] for name in names if name.startswith("heads.")} == {"main"}
    assert "mean" not in small_segmentor().state_dict()


def test_attached_head_is_in_the_state_dict_and_is_used() -> None:
    segmentor = small_segmentor()
    before = set(segmentor.state_dict())
    segmentor.attach("second", partial(DAFormerHead, width=4))
    segmentor.attach("projection", nn.Linear(3, 2))
    added = set(segmentor.state_dict()) - before
    assert {name.split(".")[1] for name in added} == {"second", "projection"}
    segmentor.eval()
    image = torch.rand(1, 3, 32, 32)
    logits, fused = segmentor.decode(segmentor.features(image), head="second")
    assert logits.shape == (1, CLASSES, 8, 8)
    assert fused.shape == (1, 4, 8, 8)
    assert not torch.equal(segmentor.predict(image), segmentor.predict(image, head="second"))
    segmentor.eval_head = "second"
    assert torch.equal(segmentor(image), segmentor.predict(image, head="second"))
    with pytest.raises(ValueError, match="already"):
        segmentor.attach("second", nn.Identity())


class EveryFourth(Encoder):
    """Pixels 0, 4, 8, ...: a map whose cells lie on pixels, as a convolution of stride 4 with padding has them."""

    channels = (3,)
    strides = (4,)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x[..., ::4, ::4]]


def test_aligned_corners_put_cells_where_strided_convolutions_saw_them() -> None:
    """A plane that rises evenly is given back as it was, by every path that up-samples; areas would bend it."""
    head = partial(DAFormerHead, width=8)
    aligned, areas = (Segmentor(EveryFourth(), head, 3, (0,) * 3, (1,) * 3, align_corners=a) for a in (True, False))
    plane = (torch.arange(17)[:, None] * 0.02 + torch.arange(33) * 0.01).expand(1, 3, 17, 33)
    for network in (aligned, areas):
        network.decode = lambda features, *_, **__: (features.stages[0], features.stages[0])
    torch.testing.assert_close(aligned.predict(plane), plane)
    assert not torch.allclose(areas.predict(plane), plane, atol=0.01)
    label = torch.randint(0, 3, (1, 17, 33), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    image = torch.stack([plane[0, 0], -plane[0, 1], 2 * plane[0, 2]])[None]
    torch.testing.assert_close(aligned.supervise(image, label).loss, F.cross_entropy(image, label.long()))
    maps = Tasks(*(plane[:, :1, ::4, ::4] for _ in range(6))).resized((17, 33), align_corners=True)
    torch.testing.assert_close(maps.target_depth, plane[:, :1])


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_normalisation_is_that_of_the_colours_whatever_the_order(order: str) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    segmentor = Segmentor(Identity(), partial(DAFormerHead, width=4), CLASSES, mean, std, order)
    image = torch.rand(2, 3, 4, 6)
    (got,) = segmentor.features(image).stages
    for channel in range(3):
        place = channel if order == "rgb" else 2 - channel
        torch.testing.assert_close(got[:, place], (image[:, channel] - mean[channel]) / std[channel])
    assert segmentor.mean_colour.tolist() == pytest.approx(mean)


def test_unknown_channel_order_is_refused() -> None:
    with pytest.raises(ValueError, match="gbr"):
        Segmentor(Identity(), partial(DAFormerHead, width=4), CLASSES, channel_order="gbr")


@pytest.mark.parametrize("size", [(32, 64), (33, 50)])
def test_predictions_have_the_images_size(size: tuple[int, int]) -> None:
    assert small_segmentor().eval().predict(torch.rand(2, 3, *size)).shape == (2, CLASSES, *size)


def test_supervise_is_weighted_cross_entropy_of_upsampled_logits() -> None:
    segmentor = small_segmentor().eval()
    image, weight = torch.rand(2, 3, 32, 64), torch.rand(2, 32, 64)
    label = torch.randint(0, CLASSES, (2, 32, 64), dtype=torch.uint8)
    label[0, :5] = 255
    result = segmentor.supervise(image, label, weight)
    probabilities = segmentor.predict(image).double().softmax(1)
    total = 0.0
    for b in range(2):
        for y in range(32):
            for x in range(64):
                if (c := int(label[b, y, x])) != 255:
                    total -= float(weight[b, y, x]) * float(probabilities[b, c, y, x].log())
    assert float(result.loss) == pytest.approx(total / label.numel(), rel=1e-5)
    assert result.logits.shape == (2, CLASSES, 8, 16)
    assert result.fused.shape == (2, 8, 8, 16)
    assert [x.shape[1] for x in result.features.stages] == [8, 8, 16, 16]


@pytest.mark.parametrize(
    "encoder",
    [
        partial(ResidualEncoder, (8, 8, 16, 16), (1, 1, 1, 1)),
        partial(MixVisionTransformer, "b0", dims=(8, 8, 10, 16), depths=(1, 1, 1, 1)),
    ],
)
def test_gradients_reach_every_parameter(encoder: partial[Encoder]) -> None:
    torch.manual_seed(0)
    segmentor = Segmentor(encoder(), partial(DAFormerHead, width=8, dropout=0.0), CLASSES)
    label = torch.randint(0, CLASSES, (2, 64, 64), dtype=torch.uint8)
    segmentor.supervise(torch.rand(2, 3, 64, 64), label).loss.backward()
    # A depthwise kernel whose dilation exceeds a tiny map sees padding only, so single weights may stay at 0.
    silent = [name for name, p in segmentor.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert silent == []
    assert all(p.grad.abs().sum() > 0 for n, p in segmentor.named_parameters() if n.endswith("weight"))


def test_loss_and_prediction_are_float32_under_autocast() -> None:
    segmentor = small_segmentor()
    image, label = torch.rand(2, 3, 32, 32), torch.randint(0, CLASSES, (2, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        result = segmentor.supervise(image, label)
        assert result.logits.dtype == torch.bfloat16
        assert result.loss.dtype == torch.float32
        assert segmentor.predict(image).dtype == torch.float32
    plain = segmentor.supervise(image, label)
    assert float(result.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=0.02)


def test_residual_encoder_has_its_strides_and_size() -> None:
    encoder = ResidualEncoder()
    maps = encoder(torch.rand(1, 3, 64, 96))
    assert [(x.shape[1], 64 // x.shape[2], 96 // x.shape[3]) for x in maps] == list(
        zip(encoder.channels, encoder.strides, encoder.strides, strict=True)
    )
    assert 1e6 < sum(p.numel() for p in encoder.parameters()) < 2e6
    assert not encoder.pretrained
    odd = encoder(torch.rand(1, 3, 45, 37))
    assert F.interpolate(odd[-1], size=(45, 37)).shape[-2:] == (45, 37)
