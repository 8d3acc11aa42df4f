from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trees import noise

from uda_seg.data.checksums import PNG
from uda_seg.data.integrity import check_image_file
from uda_seg.errors import Damaged


def png(tmp_path, **options):
    file = tmp_path / "image.png"
    Image.fromarray(noise(0, (9, 14))).save(file, **options)
    return file


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_whole_pngs_of_every_kind_pass(tmp_path, mode):
    file = tmp_path / "image.png"
    picture = Image.fromarray(noise(0, (9, 14)))
    if mode == "I;16":
        picture = Image.fromarray(np.arange(126, dtype=np.uint16).reshape(9, 14))
    else:
        picture = picture.convert(mode)
    picture.save(file)
    assert check_image_file(file) == (9, 14)
    cv2.imwrite(str(file), np.zeros((9, 14, 3), np.uint16))
    assert check_image_file(file) == (9, 14)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def handmade(width, height, pixels, interlaced=0):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_interlaced_pngs_have_seven_images(tmp_path):
    """A 5 x 5 picture in Adam7, the (width, height) of the seven by the specification's pattern."""
    file = tmp_path / "i.png"
    parts = [(1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2)]
    promised = sum(h * (w + 1) for w, h in parts)
    file.write_bytes(handmade(5, 5, bytes(promised), interlaced=1))
    assert cv2.imread(str(file)) is not None
    assert check_image_file(file) == (5, 5)
    file.write_bytes(handmade(5, 5, bytes(promised - 1), interlaced=1))
    with pytest.raises(Damaged, match="is cut off: it has"):
        check_image_file(file)


def damaged(tmp_path, content, said, cure="copy or unpack the file again"):
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(Damaged, match=rf"bad\.png .*{said}.*: {cure}"):
        check_image_file(file)


def test_what_is_wrong_with_a_file_is_told(tmp_path):
    whole = png(tmp_path).read_bytes()
    damaged(tmp_path, b"", "is empty")
    damaged(tmp_path, b"<html>404</html>", "is a web page, not an image", "the download failed, fetch it again")
    damaged(tmp_path, whole[: len(whole) // 2], "is cut off after")
    damaged(tmp_path, whole[:-12], "is cut off after")  # the end chunk alone is missing
    damaged(tmp_path, whole[:-40] + bytes(28) + whole[-12:], "wrong checksum")  # a hole in a sparse download
    damaged(tmp_path, handmade(4, 4, bytes(4 * 5 - 1)), "has 19 of 20 bytes of pixels")
    damaged(tmp_path, handmade(4, 4, b"\x09" * 20), "unknown filter")
    damaged(tmp_path, handmade(0, 4, b""), "its header says 4 x 0")
    with pytest.raises(Damaged, match="cannot be opened: No such file"):
        check_image_file(tmp_path / "none.png")


def test_opencv_would_have_read_a_truncated_file(tmp_path):
    """Why decoding is not enough."""
    file = tmp_path / "image.png"
    Image.fromarray(noise(0, (60, 80))).save(file)
    content = file.read_bytes()[: len(file.read_bytes()) * 3 // 4]
    file.write_bytes(content)
    read = cv2.imread(str(file))
    assert read is None or read.shape == (60, 80, 3)
    with pytest.raises(Damaged):
        check_image_file(file)


@given(st.data())
def test_no_flipped_byte_of_a_png_passes(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    content = bytearray(png(folder).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / "image.png").write_bytes(content)
    with pytest.raises(Damaged):
        check_image_file(folder / "image.png")


def test_jpegs_need_their_end(tmp_path):
    file = tmp_path / "a.jpg"
    Image.fromarray(noise(0, (40, 50))).save(file)
    assert check_image_file(file) == (40, 50)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(Damaged, match="has no end marker"):
        check_image_file(file)
