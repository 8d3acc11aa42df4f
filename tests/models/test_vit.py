"""Plain vision transformers: timm's features, the pyramid, sizes, positions, files and memory."""

from __future__ import annotations

import copy
import itertools
import math
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from torch import Tensor, nn

from numerics import in_float64
from uda_seg.errors import UserError
from uda_seg.models.daformer import DAFormerHead
from uda_seg.models.hrda import HRDASegmentor
from uda_seg.models.segmentor import Segmentor
from uda_seg.models.stem import DomainStem
from uda_seg.models.timm_encoder import TimmEncoder
from uda_seg.models.vit import ViTEncoder, _taps
from uda_seg.models.vit_adapter import DeformableAttention, Level
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


def test_positions_cached_in_one_precision_serve_the_other() -> None:
    rough, exact = torch.randn(1, 13, 13, 2), torch.randn(1, 13, 13, 2, dtype=torch.float64)
    with in_float64():  # as comparisons in double precision set the default
        found = resampled(exact, (3, 4))
    wanted = F.interpolate(exact.permute(0, 3, 1, 2), (3, 4), mode="bicubic", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=0)
    assert resampled(rough, (3, 4)).dtype == torch.float32


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


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapter_leaves_the_trunk_as_it_was_at_the_start(name: str, built: Any) -> None:
    """Its maps add the simple pyramid's input to the stem's, and its scales of zero inject nothing."""
    adapted = built(name, neck="adapter")
    plain, image = built(name), torch.randn(1, 3, 2 * adapted.patch, 3 * adapted.patch)
    seen: list[Tensor] = []
    handle = adapted.neck.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1]))
    with torch.no_grad():
        maps = adapted(image)
        wanted = plain.tapped(image)
    handle.remove()
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)  # prefix and patches are joined anew
    assert [x.shape[1] for x in maps] == [adapted.width] * 4
    height, width = image.shape[-2:]
    assert [tuple(x.shape[-2:]) for x in maps] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize("name", [*FAMILIES, "test_vit"])
def test_gradients_reach_the_adapter_and_the_trunk(name: str) -> None:
    torch.manual_seed(0)
    network = segmentor(ViTEncoder(name, taps=TWO_BLOCKS, neck="adapter")).train()
    for injector in network.encoder.neck.injectors:
        nn.init.constant_(injector.scale, 0.1)  # at zero what is injected has no gradient
    for attention in (m for m in network.modules() if isinstance(m, DeformableAttention)):
        for layer in (attention.offsets, attention.weights):
            nn.init.normal_(layer.weight, std=0.01)  # at zero the query is not asked
    loss = network.supervise(torch.rand(2, 3, 33, 47), torch.randint(0, 3, (2, 33, 47)).to(torch.uint8)).loss
    loss.backward()
    nothing = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias of all keys alike changes no softmax; gradients of zero are rounding's choice.
    assert loss.isfinite()
    assert all("k_proj" in key or "rope" in key for key in nothing), nothing


def test_deformable_attention_is_a_weighted_mean_of_points() -> None:
    """Against loops over queries, heads, levels, points and the four cells around each."""
    torch.manual_seed(0)
    attention = DeformableAttention(128, 2, points=3)
    for layer in (attention.offsets, attention.weights):
        nn.init.normal_(layer.weight, std=0.1)
    levels = [Level(3, 4, 8), Level(2, 2, 16)]
    query, values = torch.randn(2, 5, 128), torch.randn(2, 16, 128)
    places = torch.rand(5, 2) * torch.tensor([32.0, 24.0])
    with torch.no_grad():
        ours = attention(query, places, values, levels)
        offsets = attention.offsets(query).view(2, 5, 2, 2, 3, 2)
        weights = attention.weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
        value = attention.value(values).view(2, 16, 2, 32)
    mixed = torch.zeros(2, 5, 2, 32)
    for b, q, h, level, p in itertools.product(range(2), range(5), range(2), range(2), range(3)):
        first, grid = (0, 12)[level], levels[level]
        x, y = (places[q] / grid.cell + offsets[b, q, h, level, p] - 0.5).tolist()  # in cells' centres
        for row, column in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= row < grid.rows and 0 <= column < grid.columns:
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[b, q, h, level, p]
                mixed[b, q, h] += share * value[b, first + row * grid.columns + column, h]
    with torch.no_grad():
        torch.testing.assert_close(ours, attention.out(mixed.flatten(2)), atol=1e-5, rtol=1e-4)


def saved_bytes(run: Any) -> int:
    """Bytes that a forward keeps for its backward, each storage once, parameters aside; runs the backward too."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = run()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize(("build", "least"), [
    (lambda: ViTEncoder("test_vit"), 3.0),
    (lambda: ViTEncoder("test_vit", neck="adapter"), 1.5),  # its stem and pyramid are kept
    (lambda: TimmEncoder("test_vit"), 3.0),
    (lambda: TimmEncoder("test_convnext"), 1.5),
    (lambda: TimmEncoder("test_resnet"), 1.3),  # with batch norm: whose statistics are updated once
])  # fmt: skip
def test_checkpointed_blocks_keep_less_and_give_equal_gradients(build: Any, least: float) -> None:
    torch.manual_seed(0)
    plain = build().train()
    other = copy.deepcopy(plain)
    other.activation_checkpointing = True
    image = torch.randn(2, 3, 160, 160)

    def loss(encoder: Any) -> Tensor:
        return sum(x.square().mean() for x in encoder(image))

    weights = sum(x.nbytes for x in plain.state_dict().values())
    kept = [saved_bytes(partial(loss, encoder)) for encoder in (plain, other)]
    assert kept[0] - weights > least * max(kept[1] - weights, 1), (kept, weights)
    for (key, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), key
    for (key, a), (_, b) in zip(plain.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(a, b) or key.endswith("num_batches_tracked"), key  # which nothing reads in training


@pytest.mark.parametrize("neck", ["simple", "adapter"])
def test_an_encoder_compiles_to_one_graph(neck: str) -> None:
    encoder = ViTEncoder("test_vit", taps=[0], neck=neck).eval()
    image = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        wanted = encoder(image)
        found = torch.compile(encoder, backend="eager", fullgraph=True, dynamic=False)(image)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("neck", ["simple", "adapter"])
def test_bf16_and_channels_last_give_nearly_the_same(neck: str) -> None:
    torch.manual_seed(0)
    encoder = ViTEncoder("test_vit", taps=[0], neck=neck).eval()
    image = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        wanted = encoder(image)
        last = encoder(image.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(image)
    for exact, other, rough in zip(wanted, last, half, strict=True):
        torch.testing.assert_close(other, exact, atol=1e-4, rtol=1e-4)
        assert (rough.float() - exact).norm() < 0.05 * exact.norm()  # 8 bits, a few layers


@pytest.mark.parametrize("size", [(56, 84), (70, 98), (61, 75)])
def test_hrda_on_patches_of_14(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = ViTEncoder("vit_small_patch14_reg4_dinov2", taps=[0])
    head = partial(DAFormerHead, width=8, dilations=(1, 2))
    network = HRDASegmentor(encoder, head, 3, detail=(28, 42), attention_width=8)
    network.supervise(torch.rand(1, 3, *size), torch.zeros(1, *size, dtype=torch.uint8)).loss.backward()
    with torch.no_grad():
        logits = network.eval().predict(torch.rand(1, 3, *size))
    assert logits.shape == (1, 3, *size)
    assert logits.isfinite().all()


def test_the_patch_embedding_is_a_stem_of_its_own() -> None:
    encoder = ViTEncoder("test_vit", taps=[0])
    stem = DomainStem(encoder)
    nn.init.zeros_(stem.stage[0].proj.weight)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        own = encoder(image)[-1]
        with stem.inside(encoder):
            other = encoder(image)[-1]
        assert not torch.allclose(own, other)
        assert torch.equal(own, encoder(image)[-1])
    for options in ({"freeze": True}, {"freeze": 1}, {"lora": {"rank": 2}}):
        with pytest.raises(UserError, match=r"first stage is frozen.*method\.stem=shared"):
            DomainStem(ViTEncoder("test_vit", taps=[0], **options))
