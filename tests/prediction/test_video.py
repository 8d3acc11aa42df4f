"""`predict` on videos, made and read back by PyAV: nothing of them is lost in silence."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from prediction.films import TIMES, clip, picture
from uda_seg.data.labels import CITYSCAPES
from uda_seg.errors import Interrupted, UserError
from uda_seg.models.inference import Inference
from uda_seg.prediction import video
from uda_seg.prediction.batches import Batches
from uda_seg.prediction.inputs import is_film
from uda_seg.prediction.video import Painter, predict_video, video_output
from uda_seg.runs.trained import TrainedSegmentor
from uda_seg.visualize.pictures import colorize, overlay

av = pytest.importorskip("av")


@pytest.fixture
def model(make_segmentor):
    return TrainedSegmentor(make_segmentor().eval(), CITYSCAPES, None, Inference())


def read(path: Path) -> tuple[list[np.ndarray], list[float], list[bytes]]:
    """Frames, their times, and the packets of sound."""
    with av.open(str(path)) as container:
        frames = [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        sound = [bytes(p) for p in container.demux(audio=0) if p.size] if container.streams.audio else []
    return [f for f, _ in frames], [t for _, t in frames], sound


def predicted(model, source: Path, output: Path, kind: str = "overlay", batch: int | None = None) -> int:
    return predict_video(source, output, Batches(model, batch), Painter(CITYSCAPES, kind))


def test_a_video_keeps_its_time_stamps_and_its_sound(model, tmp_path):
    source, output = clip(tmp_path / "clip.mp4"), tmp_path / "new" / "out.mp4"
    assert is_film(source)
    assert predicted(model, source, output, batch=5) == len(TIMES)
    before, times, sound = read(source)
    after, new_times, new_sound = read(output)
    assert new_times == pytest.approx(times)
    assert np.diff(times).max() > 2 * np.diff(times).min()
    assert new_sound == sound != []
    for image, shown in zip(before, after, strict=True):
        expected = overlay(image, colorize(model.predict(image), CITYSCAPES.palette))
        # Chroma is stored at half resolution, and x264 is lossy: borders differ, areas do not.
        assert np.abs(expected.astype(int) - shown).mean() < 12
        assert np.abs(expected.mean((0, 1)) - shown.mean((0, 1))).max() < 3
    assert [path.name for path in output.parent.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(("kind", "wide"), [("colour", 1), ("confidence", 1), ("beside", 2)])
def test_other_pictures_of_a_video(model, tmp_path, kind, wide):
    source = clip(tmp_path / "clip.mkv", sound=None, times=[0, 1], size=(34, 52))
    predicted(model, source, tmp_path / "out.mkv", kind)
    before, after = read(source)[0], read(tmp_path / "out.mkv")[0]
    assert after[0].shape == (34, 52 * wide, 3)
    if kind == "beside":
        assert np.abs(after[0][:, :52].astype(int) - before[0]).mean() < 8
    if kind == "colour":
        expected = colorize(model.predict(before[0]), CITYSCAPES.palette)
        assert np.abs(expected.mean((0, 1)) - after[0].mean((0, 1))).max() < 3


def test_an_odd_side_is_made_even_by_repeating_the_border():
    image = picture(0, 5, 7)
    even = video._even(image)
    assert even.shape == (6, 8, 3)
    assert np.array_equal(even[:5, :7], image)
    assert np.array_equal(even[5, :7], image[4])


def test_sound_that_the_container_cannot_hold_is_said(model, tmp_path, caplog):
    source = clip(tmp_path / "clip.mp4", times=[0, 1])
    predicted(model, source, tmp_path / "out.webm")
    assert "the sound (aac) cannot be stored in a .webm file and is left out: choose output=NAME.mkv" in caplog.text
    assert read(tmp_path / "out.webm")[2] == []
    predicted(model, source, tmp_path / "out.mkv")
    assert read(tmp_path / "out.mkv")[2] == read(source)[2] != []


@pytest.mark.parametrize(("turned", "ratio"), [(0, Fraction(4, 3)), (90, Fraction(3, 4)), (-90, Fraction(3, 4))])
def test_pixels_that_are_not_square_keep_their_shape(model, tmp_path, monkeypatch, turned, ratio):
    source = clip(tmp_path / "clip.mp4", sound=None, times=[0], pixel=Fraction(4, 3))
    monkeypatch.setattr(video, "quarters", lambda frame: turned // 90)
    predicted(model, source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        [stream] = container.streams.video
        assert (stream.sample_aspect_ratio, stream.width) == (ratio, 48 if turned else 64)


def test_frames_that_the_decoder_holds_at_the_end_of_a_broken_file_are_kept(model, tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mkv", sound=None, times=range(12), between=3)
    real = av.container.InputContainer.demux

    def demux(container, *streams):
        for packet in real(container, *streams):
            if packet.size == 0:
                raise av.error.InvalidDataError(1, "invalid data")
            yield packet

    class Broken:
        """The file without the packet that ends it."""

        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def demux(self, *streams):
            return demux(self.container, *streams)

    opened = video.Film.__init__
    monkeypatch.setattr(video.Film, "__init__", lambda self, c, *rest: opened(self, Broken(c), *rest))
    with pytest.raises(UserError, match="cut off or damaged"):
        predicted(model, source, tmp_path / "out.mkv")
    assert len(read(tmp_path / "out.mkv")[0]) == 12


def test_what_a_truncated_video_still_holds_is_written(model, tmp_path):
    source = clip(tmp_path / "clip.mkv", sound=None, times=range(50))
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=r"clip\.mkv is cut off .*the first [01]\.\d of 2\.0 s.*out\.mkv: copy"):
        predicted(model, source, tmp_path / "out.mkv")
    assert 10 < len(read(tmp_path / "out.mkv")[0]) < 50
    whole = clip(tmp_path / "whole.mp4")
    whole.write_bytes(whole.read_bytes()[:-900])  # an MP4 has its index at the end
    with pytest.raises(UserError, match=r"whole\.mp4 cannot be read as a video .*cut off"):
        predicted(model, whole, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_damage_in_the_middle_costs_only_what_is_damaged(model, tmp_path):
    source = clip(tmp_path / "clip.mkv", sound=None, times=range(50))
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 60] = bytes(60)
    source.write_bytes(content)
    with pytest.raises(UserError, match=r"clip\.mkv is (damaged|cut off)"):
        predicted(model, source, tmp_path / "out.mkv")
    assert read(tmp_path / "out.mkv")[0]


def test_a_file_without_pictures_is_refused(model, tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    with pytest.raises(UserError, match=r"text\.mp4 cannot be read as a video"):
        predicted(model, tmp_path / "text.mp4", tmp_path / "out.mp4")
    with pytest.raises(UserError, match=r"output=out\.avi: a video is written as \.mp4"):
        video_output(tmp_path / "clip.mp4", Path("out.avi"))
    assert video_output(Path("x/clip.mov"), tmp_path) == tmp_path / "clip.mp4"


def test_without_pyav_the_extra_is_named(model, tmp_path, monkeypatch):
    source = clip(tmp_path / "clip.mp4", times=[0, 1])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"a video needs PyAV: pip install '\.\[video\]'"):
        predicted(model, source, tmp_path / "out.mp4")


def test_an_interrupted_video_is_kept_under_a_name_that_says_so(model, tmp_path, monkeypatch):
    source, real, seen = clip(tmp_path / "clip.mp4", times=range(12)), video.upright, []

    def upright(frame):
        seen.append(frame)
        if len(seen) == 6:
            raise Interrupted
        return real(frame)

    monkeypatch.setattr(video, "upright", upright)
    with pytest.raises(Interrupted) as end:
        predicted(model, source, tmp_path / "out.mp4")
    assert end.value.line.endswith(f"s are in {tmp_path / 'out.partial.mp4'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "out.partial.mp4"]
    assert len(read(tmp_path / "out.partial.mp4")[0]) == 5


def test_a_film_held_sideways_is_shown_upright(model, tmp_path):
    """A camera held upright stores its pictures lying, and how far to turn them."""
    source = clip(tmp_path / "clip.mp4", sound=None, times=[0, 1])
    # The display matrix of a track, in 16.16 fixed point (ISO 14496-12, 8.3.2): x' = -y, y' = x, a quarter clockwise.
    unit, turned = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 1 << 30), (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 1 << 30)
    as_bytes = [b"".join(v.to_bytes(4, "big", signed=True) for v in matrix) for matrix in (unit, turned)]
    content = source.read_bytes()
    at = content.index(as_bytes[0], content.index(b"tkhd"))
    source.write_bytes(content[:at] + as_bytes[1] + content[at + 36 :])
    predicted(model, source, tmp_path / "out.mp4", "beside")
    shown = read(tmp_path / "out.mp4")[0][0][:, :48]
    expected = np.rot90(picture(0), -1)  # clockwise: red at the right
    assert shown.shape == expected.shape == (64, 48, 3)
    assert np.abs(expected.astype(int) - shown).mean() < 8
