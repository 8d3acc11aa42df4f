"""Small videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TIMES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 18, 19]  # in twenty-fifths of a second: the frame rate varies


def picture(i: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Red above, blue below, with a white spot that moves."""
    found = np.zeros((height, width, 3), np.uint8)
    found[: height // 2, :, 0], found[height // 2 :, :, 2] = 200, 200
    found[4:12, 3 * i : 3 * i + 8] = 255
    return found


def clip(path: Path, sound: str | None = "aac", times=TIMES, size=(48, 64), pixel=1, between=0, **options) -> Path:
    """A small video with a tone; its pixels are `pixel` times as wide as tall, its B-frames in a row `between`."""
    with av.open(str(path), "w", **options) as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "10", "g": "6", "bf": str(between)})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        stream.codec_context.sample_aspect_ratio = Fraction(pixel)
        audio = out.add_stream(sound, rate=16000, layout="mono") if sound else None
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio is not None:
            tone = (8000 * np.sin(np.arange(14000) / 10)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
            resampled = av.AudioResampler(format=audio.format, layout="mono", rate=16000).resample(frame)
            for part in resampled:
                out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    return path
