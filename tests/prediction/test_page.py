"""The page of `serve=true`: what it answers, that it asks nothing of others, and how it is in a browser."""

from __future__ import annotations

import html
import os
import re
import shutil
import socket
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data.trees import noise, save
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import UserError
from uda_seg.models.inference import Inference
from uda_seg.prediction import page
from uda_seg.prediction.comparison import legend_of, predictions
from uda_seg.prediction.networks import names_of
from uda_seg.prediction.page import answer, free_port, is_loopback, served
from uda_seg.runs.trained import TrainedSegmentor

STRANGE = """<img src=x onerror="alert(1)"> {{7*7}} ${alert(1)}"""


@pytest.fixture
def networks(make_segmentor):
    """Two networks, one with a class and a name that are code to a page that does not escape them."""
    classes = replace(CITYSCAPES, name="custom", names=(STRANGE, *CITYSCAPES.names[1:]))
    return {
        "before": TrainedSegmentor(make_segmentor(0).eval(), CITYSCAPES, None, Inference()),
        f"after {STRANGE}": TrainedSegmentor(make_segmentor(1).eval(), classes, None, Inference()),
    }


def test_the_answer_has_each_networks_prediction_and_its_shares(networks, tmp_path):
    image = noise(1, (40, 60))
    save(tmp_path / "a.png", image)
    said = answer(networks, None, str(tmp_path / "a.png"), list(networks))
    assert said.count("<figure>") == 2
    assert said.count("data:image/") == 6
    found = predictions(image, networks)
    for (name, model), one in zip(networks.items(), found, strict=True):
        assert np.array_equal(one.found.ids, model.predict(image))
        assert html.escape(name).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in said
    rows, absent = legend_of(found)
    for column in range(2):
        assert sum(row["shares"][column] or 0 for row in rows) == pytest.approx(1)
    assert len(rows) + len(absent) == 20  # `road` of the one, the strange class of the other
    road = [row for row in rows if row["name"] in ("road", STRANGE)]
    assert all(None in row["shares"] for row in road)
    assert "<img src=x" not in said


def test_images_are_read_as_predict_reads_them(networks, tmp_path):
    image = Image.fromarray(noise(1, (20, 60)))
    exif = image.getexif()
    exif[274] = 6  # held upright
    image.save(tmp_path / "a.jpg", exif=exif)
    assert "aspect-ratio: 20 / 60" in answer(networks, None, str(tmp_path / "a.jpg"), ["before"])
    cv2.imwrite(str(tmp_path / "deep.png"), noise(1).astype(np.uint16) * 16)
    assert "<figure>" in answer(networks, None, str(tmp_path / "deep.png"), ["before"])
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"^cut\.jpg is cut off"):
        answer(networks, None, str(tmp_path / "cut.jpg"), ["before"])
    assert "Drop an image" in answer(networks, None, None, ["before"])
    assert "Choose a network" in answer(networks, None, str(tmp_path / "a.jpg"), [])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["o/streets/dacs/seed0/checkpoints/last.ckpt"], ["dacs/seed0/last"]),
        (["o/a/seed0/checkpoints/last.ckpt", "o/b/seed0/checkpoints/last.ckpt"], ["a", "b"]),
        (["o/a/checkpoints/last.ckpt", "o/a/checkpoints/best.ckpt"], ["last", "best"]),
        (["o/a.ckpt", "o/a.ckpt"], ["o/a (1)", "o/a (2)"]),
        (["o/last.ckpt", "o/x/last.ckpt"], ["o/last", "x"]),
    ],
)
def test_checkpoints_are_called_by_what_differs(paths, names):
    assert names_of([Path("/r") / path for path in paths]) == names


def test_a_port_in_use_is_said_with_the_cure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"cannot serve at 127\.0\.0\.1:{port} \(Address already in use\): .*port=N"
        ):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(UserError, match=r"cannot serve at 203\.0\.113\.1:0 .*"):  # an address for documentation
        free_port("203.0.113.1", 0)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [
        *(True, True, True, False, False)
    ]


def test_a_missing_extra_is_said(monkeypatch, networks):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"serve=true needs Gradio: pip install"):
        page.built(networks, ["before"], None)


@pytest.mark.slow
def test_the_page_in_a_browser(networks, tmp_path, monkeypatch):
    """It asks nothing of any other host, compares two networks, and shows names as text."""
    chromium = shutil.which("chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("gradio")
    if chromium is None:
        pytest.skip("no Chromium here")
    save(tmp_path / "a.png", noise(1, (60, 80)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    asked, dialogs = [], []
    with served(networks, list(networks), None, "127.0.0.1", 0) as address, sync_api.sync_playwright() as play:
        with urllib.request.urlopen(address) as response:
            assert response.headers["content-security-policy"] == page.POLICY
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        tab.goto(address)
        tab.locator("#image input[type=file]").set_input_files(str(tmp_path / "a.png"))
        tab.wait_for_selector(".uda-figures figure", timeout=60_000)
        assert tab.locator(".uda-figures figure").count() == 2
        assert STRANGE in tab.locator(".uda-figures figcaption b").nth(1).inner_text()
        assert STRANGE in " ".join(tab.locator(".uda-legend, .uda-absent").all_inner_texts())
        opacity = "getComputedStyle(document.querySelector('.uda-stack .classes')).opacity"
        assert float(tab.evaluate(opacity)) == pytest.approx(0.6)
        tab.locator(".uda-opacity input").fill("0.2")
        assert float(tab.evaluate(opacity)) == pytest.approx(0.2)
        tab.get_by_role("button", name="Confidence").click()
        assert tab.evaluate("getComputedStyle(document.querySelector('.uda-stack .confidence')).opacity") == "1"
        picture = tab.screenshot(path=str(tmp_path / "page.png"))
        assert np.unique(cv2.imdecode(np.frombuffer(picture, np.uint8), 1)).size > 50
        tab.locator("#networks input").nth(1).uncheck()
        tab.wait_for_function("document.querySelectorAll('.uda-figures figure').length === 1")
        browser.close()
    assert not dialogs
    elsewhere = [url for url in asked if not re.match(rf"{re.escape(address)}|data:|blob:{re.escape(address)}", url)]
    assert not elsewhere
    assert "GRADIO_TEMP_DIR" not in os.environ
