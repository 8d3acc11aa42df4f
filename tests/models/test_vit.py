"""Plain vision transformers: timm's features, the pyramid, sizes, positions, files and memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from uda_seg.errors import UserError
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.vit import ViTEncoder, _taps
from uda_seg.models.vit_neck import onto_image
from uda_seg.models.vit_trunk import resampled

DINOV3 = "vit_tiny_patch16_dinov3_qkvb"
FAMILIES = ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", DINOV3, "eva02_tiny_patch14_224")
TWO_BLOCKS = (0, 0, 1, 1)


@pytest.fixture(scope="module")
def built() -> Any:
    """Encoders of two blocks by name and further options, each built once: tests must not change them."""
    known: dict[Any, ViTEncoder] = {}

    def built(name: str, **options: Any) -> ViTEncoder:
        key = (name, *sorted(options.items()))
        if key not in known:
            torch.manual_seed(0)
            known[key] = ViTEncoder(name, **{"taps": TWO_BLOCKS, **options}).eval()
        return known[key]

    return built


@pytest.mark.parametrize("name", [*FAMILIES, "deit_tiny_distilled_patch16_224"])
def test_tokens_are_those_of_timm(name: str, built: Any) -> None:
    """At the model's own size to the bit; elsewhere positions are resampled by other sums (1e-5 of values up to 5)."""
    encoder = built(name)
    theirs = timm.create_model(name, depth=2, num_classes=0, dynamic_img_size=True).eval()
    missing = theirs.load_state_dict(encoder.trunk.state_dict(), strict=False).missing_keys
    assert all(key.startswith(("norm.", "fc_norm.")) for key in missing)
    side = encoder.patch
    for size, tolerance in (((4 * side, 6 * side), 1e-5), (theirs.patch_embed.img_size, 0.0)):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            wanted = theirs.forward_intermediates(image, indices=[0, 1], intermediates_only=True)
            maps = encoder.tapped(image)
        for tap, norm, ours in zip((0, 0, 1, 1), encoder.norms, maps, strict=True):
            expected = norm(wanted[tap].movedim(1, -1)).movedim(-1, 1)
            torch.testing.assert_close(ours, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("depth", "taps"), [(24, (5, 11, 17, 23)), (12, (2, 5, 8, 11)), (2, TWO_BLOCKS), (3, (0, 1, 2, 2))]
)
def test_taps_are_evenly_spaced_and_end_with_the_last_block(depth: int, taps: tuple[int, ...]) -> None:
    assert _taps(None, depth) == taps


@pytest.mark.parametrize("taps", [[12], [3, 2, 5, 6], [1, 2], [0, 1, 2, 12]])
def test_impossible_taps_are_one_line(taps: list[int]) -> None:
    with pytest.raises(UserError, match=r"model\.encoder\.taps=.*one block or four in ascending order, of 0 to 11"):
        ViTEncoder("vit_tiny_patch16_224", taps=taps)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit_relpos", "vit_tiny_r_s16_p8_224"])
def test_other_networks_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=r"is no plain vision transformer .* say model=timm") as caught:
        ViTEncoder(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(64, 96), (61, 75), (14, 14), (7, 100)])
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_have_the_cells_of_the_image(name: str, size: tuple[int, int], built: Any) -> None:
    with torch.no_grad():
        maps = built(name)(torch.randn(1, 3, *size))
    assert [tuple(x.shape[-2:]) for x in maps] == [(-(-size[0] // s), -(-size[1] // s)) for s in (4, 8, 16, 32)]
    assert [x.shape[1] for x in maps] == list(built(name).channels)
    assert all(x.isfinite().all() for x in maps)


@pytest.mark.parametrize("cell", [3.5, 4.0, 8.0, 16.0])
@pytest.mark.parametrize("size", [(64, 96), (61, 75)])
def test_cells_see_the_pixels_that_they_cover(cell: float, size: tuple[int, int]) -> None:
    """A plane that rises with the pixels keeps its value at every cell's centre, whatever the grids."""
    rows, columns = (-(-side // 56) * 56 / cell for side in size)  # covers more than the image
    down, right = ((torch.arange(int(count)) + 0.5) * cell for count in (rows, columns))
    plane = (down[:, None] * 2 + right)[None, None]
    for stride in (4, 8, 16, 32):
        fitted = onto_image(plane, cell, size, stride)
        count = [-(-side // stride) for side in size]
        down, right = ((torch.arange(n) + 0.5) * side / n for n, side in zip(count, size, strict=True))
        wanted = down[:, None] * 2 + right
        inner = (down[:, None] > cell / 2) & (right > cell / 2)  # outermost values are repeated
        torch.testing.assert_close(fitted[0, 0][inner], wanted[inner], atol=1e-3, rtol=1e-5)


def segmentor(encoder: ViTEncoder, seed: int = 0) -> Segmentor:
    torch.manual_seed(seed)
    return Segmentor(encoder, partial(DAFormerHead, width=8, dilations=(1, 2)), 3).eval()


def test_logits_have_the_size_of_the_image(built: Any) -> None:
    network = segmentor(built("vit_small_patch14_reg4_dinov2"))
    with torch.no_grad():
        assert network.predict(torch.rand(1, 3, 37, 51)).shape == (1, 3, 37, 51)


class Finest(nn.Module):
    """Logits straight from the finest map."""

    def fuse(self, stages: list[Tensor]) -> Tensor:
        return stages[0]

    def classify(self, fused: Tensor) -> Tensor:
        return fused[:, :3]


def test_an_image_of_an_odd_size_has_the_logits_of_its_padded_self(built: Any) -> None:
    """52 pixels are 13 cells of the finest map, so nothing is interpolated but the logits' last two pixels."""
    network = Segmentor(built("vit_tiny_patch16_224"), lambda **_: Finest(), 3)
    image = torch.rand(1, 3, 52, 36)
    whole = F.pad(image, (0, 12, 0, 12), mode="replicate")
    with torch.no_grad():
        ours, theirs = network.predict(image), network.predict(whole)
    torch.testing.assert_close(ours[..., :50, :34], theirs[..., :50, :34], atol=1e-5, rtol=0)
    assert not torch.allclose(ours, theirs[..., :52, :36], atol=1e-5)


def test_an_image_shifted_by_a_patch_shifts_its_logits() -> None:
    """Without positions attention knows no places, and cells of the finest map see one patch each."""
    torch.manual_seed(0)
    encoder = ViTEncoder("vit_tiny_patch16_224", taps=[0]).eval()
    nn.init.zeros_(encoder.trunk.pos_embed)
    network = Segmentor(encoder, lambda **_: Finest(), 3)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        still, moved = network.predict(image), network.predict(image.roll((16, 32), (2, 3)))
    assert still.std() > 0.01
    inner = (..., slice(18, 62), slice(34, 94))
    torch.testing.assert_close(still.roll((16, 32), (2, 3))[inner], moved[inner], atol=1e-5, rtol=0)


def test_padding_can_be_refused(built: Any) -> None:
    encoder = built("vit_small_patch14_reg4_dinov2", pad=False)
    with pytest.raises(UserError, match=r"64 x 70 pixels are no multiple of the patch, 14: choose such data\.crop"):
        encoder(torch.rand(1, 3, 64, 70))
    with torch.no_grad():
        encoder(torch.rand(1, 3, 56, 70))


@pytest.mark.parametrize("grid", [(5, 7), (14, 20), (30, 9), (14, 14)])
def test_positions_are_resampled_as_by_timm_with_gradients(grid: tuple[int, int]) -> None:
    positions = torch.randn(1, 14, 14, 6, requires_grad=True)
    seed = torch.randn(1, *grid, 6)
    for _ in range(2):  # the second time from the cache
        with torch.autocast("cpu", torch.bfloat16):
            ours = resampled(positions, grid)
        theirs = resample_abs_pos_embed_nhwc(positions, list(grid))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        gradients = [torch.autograd.grad((x * seed).sum(), positions)[0] for x in (ours, theirs)]
        torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_positions_cached_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        resampled(torch.randn(1, 11, 11, 2), (3, 4))
    resampled(torch.randn(1, 11, 11, 2, requires_grad=True), (3, 4)).sum().backward()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_everything(name: str) -> None:
    torch.manual_seed(0)
    network = segmentor(ViTEncoder(name, taps=TWO_BLOCKS)).train()
    result = network.supervise(torch.rand(2, 3, 33, 47), torch.randint(0, 3, (2, 33, 47)).to(torch.uint8))
    result.loss.backward()
    assert result.loss.isfinite()
    without = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


def test_drop_path_is_off_unless_asked_for() -> None:
    assert not [m for m in ViTEncoder(DINOV3, taps=[1]).modules() if type(m).__name__ == "DropPath"]
    assert [m for m in ViTEncoder(DINOV3, taps=[11], drop_path=0.1).modules() if type(m).__name__ == "DropPath"]
