"""A script that times several configurations, of which one may fail."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "measure_steps.py")
TINY = (
    "data=streets trainer=cpu data.crop=[64,64] data.source.size=[64,128] data.target.size=[64,128] "
    "data.source.count=4 data.target.count=4 data.source_batch=1 data.target_batch=1 data.rare_class.enabled=false"
)


def test_one_that_fails_is_written_down_and_the_next_one_is_measured(monkeypatch, tmp_path):
    output = tmp_path / "steps.jsonl"
    words = ["--common", TINY, "--steps", "3", "--output", str(output), "method=none_such", "method=source_only"]
    monkeypatch.setattr(sys, "argv", ["measure_steps.py", *words])
    runpy.run_path(SCRIPT, run_name="__main__")
    failed, measured = map(json.loads, output.read_text().splitlines())
    assert "none_such" in failed["error"]
    assert "step_ms" not in failed
    assert len(measured["blocks_ms"]) == 3
    assert min(measured["blocks_ms"]) <= measured["step_ms"] <= max(measured["blocks_ms"])
    # one source image per step, to the digits that are written
    assert abs(measured["images_per_s"] * measured["step_ms"] / 1000 - 1) < 0.05
    assert measured["trained_m"] == measured["weights_m"] > 1
