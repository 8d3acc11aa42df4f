"""Weights from files: what is accepted, renamed, refused and said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from uda_seg.errors import UserError
from uda_seg.models.deeplab import ResNet101
from uda_seg.models.mit import MixVisionTransformer
from uda_seg.models.small import ResidualEncoder
from uda_seg.models.timm_encoder import TimmEncoder
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
