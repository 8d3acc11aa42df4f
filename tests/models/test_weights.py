"""Weights from files: what is accepted, renamed, refused and said."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from models import released
from uda_seg.errors import UserError
from uda_seg.models.deeplab import ResNet101
from uda_seg.models.hub import described, fetch
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD
from uda_seg.models.small import ResidualEncoder
from uda_seg.models.timm_encoder import TimmEncoder
from uda_seg.models.timm_weights import _refuse_other_images
from uda_seg.models.weights import load_encoder


def tiny(weights: Path | None = None) -> MixVisionTransformer:
    return MixVisionTransformer("b0", dims=(4, 4, 10, 8), depths=(1, 1, 1, 1), weights=weights)


@pytest.mark.parametrize(
    "prefix", ["", "backbone.", "module.", "module.backbone.", "encoder.", "segmentor.encoder.", "model.backbone."]
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_known_wrappings_load(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    source = tiny()
    state = {prefix + k: v for k, v in source.state_dict().items()} | {"head.weight": torch.zeros(3)}
    path = tmp_path / "mit.pth"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    loaded = tiny(path)
    assert loaded.pretrained
    assert not tiny().pretrained
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_report_counts_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = tiny().state_dict()
    path = tmp_path / "mit.pth"
    torch.save({**state, "head.weight": torch.zeros(1), "head.bias": torch.zeros(1), "x.y": torch.zeros(1)}, path)
    with caplog.at_level(logging.INFO):
        report = load_encoder(tiny(), path)
    assert (report.loaded, report.dropped, report.unused) == (len(state), 2, ("x.y",))
    assert str(report) in caplog.text
    assert "x.y" in str(report)
    assert "\n" not in str(report)


def test_missing_tensors_are_refused_by_name(tmp_path: Path) -> None:
    state = tiny().state_dict()
    del state["block2.0.attn.kv.weight"]
    torch.save(state, tmp_path / "part.pth")
    encoder = tiny()
    with pytest.raises(UserError, match=r"part\.pth.*block2\.0\.attn\.kv\.weight"):
        load_encoder(encoder, tmp_path / "part.pth")
    assert not encoder.pretrained


def test_other_variant_is_refused_before_anything_changes(tmp_path: Path) -> None:
    wider = MixVisionTransformer("b0", dims=(8, 4, 10, 8), depths=(1, 1, 1, 1))
    torch.save(wider.state_dict(), tmp_path / "wider.pth")
    encoder = tiny()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    with pytest.raises(UserError, match=r"\(8, 3, 7, 7\).*\(4, 3, 7, 7\)"):
        load_encoder(encoder, tmp_path / "wider.pth")
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


class Evil:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: torch.save({"state_dict": Evil()}, path), "pickled objects"),
        (lambda path: path.write_bytes(b"not a file of torch"), "broken"),
        (lambda path: path.write_bytes(b""), "weights file"),
        (lambda path: torch.save([1, 2], path), "state_dict"),
        (lambda path: None, "no such"),
    ],
)
def test_bad_files_are_one_clear_line(tmp_path: Path, write: object, says: str) -> None:
    path = tmp_path / "bad.pth"
    write(path)  # type: ignore[operator]
    with pytest.raises(UserError, match=says) as caught:
        tiny(path)
    assert "bad.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_caffe_file_without_step_counters_and_with_prefix_loads(tmp_path: Path) -> None:
    build = {"blocks": (1, 1, 1, 1), "width": 4}
    source = ResNet101(**build)
    state = {f"Scale.{k}": v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state | {"Scale.layer5.conv2d_list.0.weight": torch.zeros(1)}, tmp_path / "caffe.pth")
    loaded = ResNet101(**build, weights=tmp_path / "caffe.pth")
    assert torch.equal(loaded.get_parameter("layer4.0.conv2.weight"), source.get_parameter("layer4.0.conv2.weight"))


@pytest.mark.parametrize("name", ["resnet10t", "mambaout_femto"])  # the second computes channels-last
def test_timm_encoder_gives_a_pyramid_from_stride_4(name: str) -> None:
    encoder = TimmEncoder(name)
    maps = encoder(torch.rand(1, 3, 64, 96))
    assert encoder.strides == (4, 8, 16, 32)
    assert [x.shape[1] for x in maps] == list(encoder.channels)
    assert [64 // x.shape[2] for x in maps] == list(encoder.strides)
    assert not encoder.pretrained


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_of_timm_take_images_of_any_size(name: str) -> None:
    encoder = TimmEncoder(name)
    for size in ((224, 224), (64, 96)):
        maps = encoder(torch.rand(1, 3, *size))
        assert [size[0] // x.shape[2] for x in maps] == list(encoder.strides)
        assert [size[1] // x.shape[3] for x in maps] == list(encoder.strides)


def test_the_built_in_start_knows_no_natural_images() -> None:
    encoder = ResidualEncoder(weights="builtin")
    assert not encoder.pretrained
    assert (encoder.stem.get_submodule("norm").get_buffer("running_mean") != 0).any()


def test_timm_encoder_loads_a_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    whole = timm.create_model("resnet10t")
    torch.save(whole.state_dict(), tmp_path / "r10.pth")
    encoder = TimmEncoder("resnet10t", weights=tmp_path / "r10.pth")
    assert encoder.pretrained
    assert torch.equal(encoder.body.get_parameter("layer4.0.conv1.weight"), whole.layer4[0].conv1.weight)


def test_timm_encoder_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="resnet10t"):
        TimmEncoder("resnet10tt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth"):
        TimmEncoder("resnet10t", weights=tmp_path / "other.pth")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(UserError, match="network") as caught:
        TimmEncoder("resnet10t", weights="imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("prefix", ["", "segformer."])
def test_encoders_of_transformers_load(tmp_path: Path, version: int, prefix: str) -> None:
    source = tiny()
    theirs = {prefix + n: t for n, t in released.in_transformers(source.state_dict(), version)}
    assert len(theirs) == len(source.state_dict()) + 8  # K and V apart: weight and bias of four blocks
    theirs |= {"classifier.weight": torch.zeros(1000, 8), "classifier.bias": torch.zeros(1000)}
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({n: t.contiguous() for n, t in theirs.items()}, path)
    encoder = tiny()
    report = load_encoder(encoder, path)
    assert (report.loaded, report.dropped, report.unused) == (len(source.state_dict()), 2, ())
    for name, tensor in source.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


@pytest.mark.parametrize("version", [None, 4, 5])
def test_loaded_files_compute_what_an_independent_encoder_does(tmp_path: Path, version: int | None) -> None:
    encoders = pytest.importorskip("segmentation_models_pytorch.encoders")
    torch.manual_seed(0)
    oracle = encoders.get_encoder("mit_b0", weights=None).eval()
    # Random everywhere: a swapped K and V or a forgotten bias shows. Where a norm reads a map, its variance is as small
    # as the epsilons, so that a wrong one (1e-6 in blocks, 1e-5 in patch embeddings and reductions) shows too.
    weights = {k: v + 0.1 * torch.randn_like(v) for k, v in oracle.state_dict().items()}
    before_norms = re.compile(r"patch_embed\d\.|\.attn\.sr\.")
    weights = {k: 3e-3 * v if before_norms.search(k) else v for k, v in weights.items()}
    oracle.load_state_dict(dict(weights))
    path = tmp_path / "model.safetensors"
    named = dict(released.in_transformers(weights, version)) if version else weights
    safetensors.torch.save_file({n: t.contiguous() for n, t in named.items()}, path)
    ours = MixVisionTransformer("b0", weights=path).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for got, want in zip(ours(image), oracle(image)[2:], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_half_a_kv_pair_is_missing_by_name(tmp_path: Path) -> None:
    theirs = dict(released.in_transformers(tiny().state_dict(), 4))
    del theirs["encoder.block.1.0.attention.self.value.bias"]
    torch.save(theirs, tmp_path / "half.pth")
    with pytest.raises(UserError, match=r"half\.pth: fills .*first missing: block2\.0\.attn\.kv\.bias"):
        tiny(tmp_path / "half.pth")


def test_deeplab_starts_load_under_any_of_their_names(tmp_path: Path) -> None:
    build = {"blocks": (1, 1, 1, 1), "width": 4}
    shapes = released.resnet101(**build)
    old = {n: s for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
    tensors = released.random(old | released.dilated("layer5", 21, 128), 0)
    for prefix in ("", "Scale.", "net."):  # COCO's, ImageNet's, and the latter's under another name
        path = tmp_path / f"{prefix}init.pth"
        torch.save({prefix + n: t for n, t in tensors.items()}, path)
        encoder = ResNet101(**build)
        report = load_encoder(encoder, path)
        assert (report.loaded, report.dropped, report.unused) == (len(old), 8, ())
        assert all(torch.equal(encoder.state_dict()[n], tensors[n]) for n in old)


def test_missing_tensors_can_be_allowed_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny()
    lacking = [n for n in source.state_dict() if n.startswith(("block1.0.attn.sr.", "norm4.bias"))]
    assert len(lacking) == 3
    path = tmp_path / "part.pth"
    torch.save({n: t for n, t in source.state_dict().items() if n not in lacking}, path)
    with pytest.raises(UserError, match=r"pretrained_allow_missing"):
        tiny(path)
    with pytest.raises(UserError, match=r"first missing: norm4\.bias"):
        load_encoder(tiny(), path, ["block1.0.attn.sr"])
    encoder = tiny()
    before = encoder.get_parameter("norm4.bias").clone()
    report = load_encoder(encoder, path, ["block1.0.attn.sr", "norm4.bias"])
    assert report.allowed == tuple(lacking)
    assert encoder.pretrained
    assert torch.equal(encoder.get_parameter("norm4.bias"), before)
    assert "3 LEFT UNTRAINED as allowed" in caplog.text
    with pytest.raises(UserError, match=r"the encoder has no block1\.0\.attn\.sx; did you mean block1\.0\.attn\.sr"):
        load_encoder(tiny(), path, ["block1.0.attn.sx"])
    with pytest.raises(UserError, match=r"the encoder has no norm4\.bia;"):  # a name, not the beginning of one
        load_encoder(tiny(), path, ["norm4.bia"])


def in_hub_cache(root: Path, repository: str, tensors: dict, file: str = "model.safetensors") -> None:
    """A repository as the hub's client leaves it on disk."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    path = folder / "snapshots" / ("0" * 40) / file
    if file.endswith("safetensors"):
        safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, path)
    else:
        torch.save(tensors, path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_the_hubs_cache_is_enough(hub: Path, file: str) -> None:
    source = tiny()
    in_hub_cache(hub, "somebody/mit-b0", dict(released.in_transformers(source.state_dict(), 4)), file)
    encoder = tiny("hub:somebody/mit-b0")  # type: ignore[arg-type]
    assert torch.equal(encoder.get_parameter("norm3.weight"), source.get_parameter("norm3.weight"))
    for name in ("somebody/mit-b1", "somebody/mit-b0@v2", "no name at all"):
        with pytest.raises(UserError, match=f"pretrained=hub:{name}") as caught:
            tiny(f"hub:{name}")  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"is for model=timm"):
        tiny("timm:a1_in1k")  # type: ignore[arg-type]


def test_timm_tags_are_found_in_the_cache_and_checked(hub: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    whole = timm.create_model("resnet10t")
    in_hub_cache(hub, "timm/resnet10t.c3_in1k", whole.state_dict())
    for weights in ("timm:c3_in1k", "timm:resnet10t.c3_in1k", "hub:timm/resnet10t.c3_in1k"):
        encoder = TimmEncoder("resnet10t", weights=weights)
        assert encoder.pretrained
        assert torch.equal(encoder.body.get_parameter("layer4.0.conv1.weight"), whole.layer4[0].conv1.weight)
    with pytest.raises(UserError, match=r"timm has no such weights of resnet10t; nearest: resnet10t\.c3_in1k"):
        TimmEncoder("resnet10t", weights="timm:c4_in1k")
    with pytest.raises(UserError, match=r"resnet18.*run once with network access") as caught:
        TimmEncoder("resnet18", weights="timm:a1_in1k")
    assert "\n" not in str(caught.value)


def test_a_repository_of_another_normalisation_is_refused(hub: Path) -> None:
    """The checkpoint knows the model's name alone, and would normalise images by it."""
    name = "somebody/resnet10t.mae"
    in_hub_cache(hub, name, {"x": torch.ones(1)})
    weights = fetch(name)
    config = weights.with_name("config.json")
    about = {"architecture": "resnet10t", "pretrained_cfg": {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}}
    for said in (None, about, {}, ["nonsense"], {"pretrained_cfg": "nonsense"}):
        if said is not None:
            config.write_text(json.dumps(said))
        _refuse_other_images("resnet10t", f"hub:{name}", described(name, weights))
    config.write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))  # as older ones are
    with pytest.raises(
        UserError, match=r"mean \[0.5, 0.5, 0.5\] .*those of resnet10t: say pretrained=FILE, model.mean"
    ):
        TimmEncoder("resnet10t", weights=f"hub:{name}")  # type: ignore[arg-type]
    config.write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"say model\.encoder\.name=vit_base_patch16_224\.mae, whose are"):
        TimmEncoder("vit_base_patch16_224", weights=f"hub:{name}")  # type: ignore[arg-type]


def test_timm_weights_may_lack_what_is_allowed(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    state = timm.create_model("resnet10t").state_dict()
    del state["layer4.0.bn1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"layer4\.0\.bn1\.weight"):
        TimmEncoder("resnet10t", weights=tmp_path / "part.pth")
    assert TimmEncoder("resnet10t", weights=tmp_path / "part.pth", allow_missing=["layer4.0.bn1"]).pretrained


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_safetensors_are_one_clear_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.safetensors"
    safetensors.torch.save_file(tiny().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut\.safetensors.*fetch it again") as caught:
        tiny(path)
    assert "\n" not in str(caught.value)
