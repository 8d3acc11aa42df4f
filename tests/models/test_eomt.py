"""EoMT: queries in the last blocks, beside a slow re-writing with the same weights; every method trains it."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from uda_seg.errors import UserError
from uda_seg.models.eomt import EoMT, EoMTHead
from uda_seg.models.small import ResidualEncoder
from uda_seg.models.vit import ViTEncoder

NAMES = ("test_vit2", "vit_tiny_patch16_dinov3_qkvb", "eva02_tiny_patch14_224")


def network(name: str = "test_vit2", classes: int = 5, blocks: int = 2, **options: object) -> EoMT:
    torch.manual_seed(0)
    head = partial(EoMTHead, queries=7, blocks=blocks, width=12)
    return EoMT(ViTEncoder(name, taps=[-1], **options), head, classes).eval()


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.T + layer.bias


def attended(x: Tensor, attention: nn.Module) -> Tensor:
    """Multi-head attention of [N, C] tokens, head by head and token by token."""
    n, c = x.shape
    heads, size = attention.num_heads, c // attention.num_heads
    q, k, v = linear(x, attention.qkv).view(n, 3, heads, size).unbind(1)
    q, k = attention.q_norm(q), attention.k_norm(k)
    out = torch.zeros(n, heads, size)
    for head in range(heads):
        for i in range(n):
            scores = torch.stack([(q[i, head] * k[j, head]).sum() * size**-0.5 for j in range(n)])
            out[i, head] = sum(p * v[j, head] for j, p in enumerate(scores.softmax(0)))
    return linear(out.reshape(n, c), attention.proj)


def by_hand(net: EoMT, image: Tensor) -> Tensor:
    """Logits [K, h, w] of one image of whole patches, written anew for a plain ViT without rotary positions."""
    trunk, head, encoder = net.encoder.trunk, net.heads["main"], net.encoder
    tokens = trunk._pos_embed(trunk.patch_embed((image - net.mean) / net.std))[0]
    for index, block in enumerate(trunk.blocks):
        if index == len(trunk.blocks) - head.blocks:
            tokens = torch.cat([tokens[:1], head.queries, tokens[1:]])
        tokens = tokens + block.ls1(attended(block.norm1(tokens), block.attn))
        hidden = F.gelu(linear(block.norm2(tokens), block.mlp.fc1))
        tokens = tokens + block.ls2(linear(hidden, block.mlp.fc2))
    tokens = encoder.norms[0](tokens)
    count = len(head.queries)
    queries, patches = tokens[1 : 1 + count], tokens[1 + count :]
    side = image.shape[-1] // encoder.patch
    grid = patches.T.reshape(1, -1, len(patches) // side, side)
    stages = encoder.neck([grid] * 4)
    finest = stages[0].shape[-2:]
    pixels = sum(
        F.interpolate(F.conv2d(stage, embed.proj.weight[..., None, None], embed.proj.bias), finest, mode="bilinear")
        for stage, embed in zip(stages, head.embed_layers, strict=True)
    )
    pixels = head.norm(head.smooth(pixels))[0]
    masks = head.mask_layers(queries)
    classes = linear(queries, head.class_layer).softmax(-1)
    votes = torch.zeros(net.num_classes, *finest)
    for q in range(count):
        inside = torch.sigmoid((masks[q][:, None, None] * pixels).sum(0))
        for k in range(net.num_classes):
            votes[k] += classes[q, k] * inside
    return votes.log()


@torch.no_grad()
def test_logits_equal_a_slow_rewriting() -> None:
    net = network()
    image = torch.rand(1, 3, 32, 64)
    ours, _ = net.decode(net.features(image))
    theirs = by_hand(net, image)
    assert ours.shape[1:] == theirs.shape
    assert torch.allclose(ours[0], theirs, atol=1e-5)  # forty times the rounding seen


@pytest.mark.parametrize("name", NAMES)
def test_queries_have_no_position_and_change_nothing_where_they_are_not_seen(name: str) -> None:
    """In another order they give the same logits, and the encoder alone is the one of other heads."""
    net = network(name)
    image = torch.rand(1, 3, 48, 40)
    with torch.no_grad():
        before = net.predict(image)
        alone = net.encoder(net.encoder_input(image))
        joined = net.features(image)
        net.main.queries.copy_(net.main.queries.flip(0))
        assert torch.allclose(net.predict(image), before, atol=1e-4)
        assert torch.equal(net.encoder(net.encoder_input(image))[0], alone[0])
    assert before.shape == (1, 5, 48, 40)
    assert joined.queries.shape == (1, 7, net.encoder.width)
    assert [x.shape for x in joined.stages] == [x.shape for x in alone]
    assert not torch.allclose(joined.stages[0], alone[0])  # patches look at the queries


def test_unrotated_tokens_of_rotary_trunks_are_what_a_prefix_is() -> None:
    """Queries in the place of more prefix tokens, which timm leaves out of the rotation, compute the same."""
    net = network("vit_tiny_patch16_dinov3_qkvb", blocks=1)
    image = net.encoder_input(torch.rand(1, 3, 32, 32))
    with torch.no_grad():
        ours = net.encoder(image, net.main.queries, 1)[-1]
        other = copy.deepcopy(net.encoder)
        last = other.trunk.blocks[-1]
        forward = last.forward
        last.attn.num_prefix_tokens += 7
        # Without the extension of the embeddings: those of the patches alone.
        last.forward = lambda x, rope: forward(x, rope[..., 7:, :])
        theirs = other(image, net.main.queries, 1)[-1]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_cross_entropy_reaches_queries_classes_masks_and_trunk() -> None:
    net = network().train()
    label = torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8)
    net.supervise(torch.rand(2, 3, 32, 32), label).loss.backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle, idle


def test_a_pattern_is_learnt() -> None:
    torch.manual_seed(1)
    net = network(classes=2).train()
    image = torch.rand(1, 3, 32, 32) / 4
    image[..., 16:] += 0.75
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[..., 16:] = 1
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(20):
        loss = net.supervise(image, label).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (net.eval().predict(image).argmax(1) == label).float().mean() > 0.95
    assert (
        net.predict(image).softmax(1).amax(1).mean() > 0.8
    )  # sure enough for a pseudo-label's threshold to mean something


def test_checkpointed_blocks_give_equal_gradients() -> None:
    grads = []
    for flag in (False, True):
        net = network()
        net.encoder.activation_checkpointing = flag
        net.supervise(
            torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 32, 32).byte()
        ).loss.backward()
        grads.append(net.main.queries.grad)
    assert torch.allclose(*grads, atol=1e-7)


def test_an_adapted_encoder_compiles_with_its_queries_to_one_graph() -> None:
    encoder = ViTEncoder("test_vit", taps=[1], lora={"rank": 2, "init": "minor"})
    net, image = EoMT(encoder, partial(EoMTHead, queries=7, blocks=1, width=12), 5).eval(), torch.rand(1, 3, 45, 70)
    with torch.no_grad():
        wanted = net.predict(image)
        counter = CompileCounter()
        net.encoder.compile(backend=counter, fullgraph=True, dynamic=False)
        found = net.predict(image)
    assert counter.frame_count == 1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)  # positions are resampled by other sums


def test_bad_combinations_are_one_line() -> None:
    with pytest.raises(UserError, match=r"^[^\n]*plain vision transformer[^\n]*$"):
        EoMT(ResidualEncoder(), partial(EoMTHead), 5)
    with pytest.raises(UserError, match=r"model\.head\.blocks=9: the encoder runs 8 blocks"):
        network(blocks=9)
