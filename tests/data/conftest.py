"""What the tests of the data need."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the person's own cache."""
    monkeypatch.setenv("UDA_SEG_CACHE", str(tmp_path / "cache"))
