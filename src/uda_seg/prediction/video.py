"""Prediction of a video: decoded, segmented, and encoded again, with its time stamps, upright, and with its sound.

PyAV (the extra `video`) reads and writes. Pictures are encoded anew; the sound is copied as it is. What a damaged video
still holds is written, and said.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.progress import track

from uda_seg.data.labels import ClassSet
from uda_seg.errors import Interrupted, UserError
from uda_seg.prediction.batches import Batches
from uda_seg.prediction.outputs import ROOM, Pixels, Segmented
from uda_seg.storage.files import first_line, part_of, remove_parts
from uda_seg.visualize.pictures import colorize, heat, overlay

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoFrame, VideoStream
    from av.container import InputContainer, OutputContainer

log = logging.getLogger(__name__)

X264 = ("libx264", {"crf": "18", "preset": "veryfast"})
# Suffix of an output -> the container's name in FFmpeg, the codec, and its options.
WRITTEN: dict[str, tuple[str, str, dict[str, str]]] = {
    ".mp4": ("mp4", X264[0], X264[1]),
    ".m4v": ("mp4", X264[0], X264[1]),
    ".mov": ("mov", X264[0], X264[1]),
    ".mkv": ("matroska", X264[0], X264[1]),
    ".webm": ("webm", "libvpx-vp9", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}),
}
BT709 = 1  # colour matrix, primaries and transfer of HDTV, by ITU-T H.273
LIMITED = 1  # range of luma, 16 to 235, by FFmpeg's numbers
SLACK_S = 0.25  # difference between a stated duration and the end of the last packet that is not worth a word


def video_output(source: Path, output: Path) -> Path:
    """Return the file of a predicted video: `output`, or one called like the source in this folder.

    Raises:
        UserError: a suffix of a container that is not written.
    """
    if output.is_dir() or not output.suffix:
        return output / f"{source.stem}.mp4"
    if output.suffix.lower() not in WRITTEN:
        raise UserError(f"output={output}: a video is written as {', '.join(WRITTEN)}")
    return output


@dataclass
class Film:
    """A video that is read, and what is found on the way.

    Attributes:
        container: the open file.
        video: the stream of pictures.
        sound: the streams of sound.
        read: frames decoded so far.
        damaged: packets that could not be decoded.
        end: end of what was read, in seconds of the file's clock.
        broken: message of the error that ended reading; None so far.
    """

    container: InputContainer
    video: VideoStream
    sound: list[AudioStream]
    read: int = 0
    damaged: int = 0
    end: float = 0.0
    broken: str | None = None

    def packets(self) -> Iterator[Packet[Any]]:
        """Yield the packets of pictures and sound, up to the first place that cannot be read."""
        import av

        found = self.container.demux(self.video, *self.sound)
        while True:
            try:
                packet = next(found)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.broken = first_line(error)
                return
            if packet.pts is not None and packet.time_base is not None:
                self.end = max(self.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            yield packet

    def frames_of(self, packet: Packet[Any] | None) -> Iterator[VideoFrame]:
        """Decode a packet of pictures; a damaged one has none. None: what the decoder still holds."""
        import av

        try:
            for frame in self.video.decode(packet):
                self.read += 1
                self.damaged += bool(frame.is_corrupt)
                yield frame
        except av.FFmpegError:
            self.damaged += 1

    @property
    def total(self) -> int | None:
        """Number of frames as the file says, or by its duration; None if it says neither."""
        rate = self.video.average_rate
        return self.video.frames or (round(self.stated * float(rate)) if self.stated and rate else None)

    @property
    def stated(self) -> float:
        """Duration that the file states, in seconds; 0 if it does not."""
        streams: list[Any] = [self.video, *self.sound]
        if all(stream.duration and stream.time_base for stream in streams):
            return max(float(stream.duration * stream.time_base) for stream in streams)
        return (self.container.duration or 0) / 1e6

    @property
    def seconds(self) -> float:
        """Duration of what was read, in seconds."""
        return max(0.0, self.end - (self.container.start_time or 0) / 1e6)

    def complaint(self) -> str | None:
        """Say what could not be read, in words that follow the file's name; None if all was."""
        if self.broken is not None or self.seconds < self.stated - SLACK_S:
            length = f"{self.seconds:.1f} of {self.stated:.1f} s" if self.stated else f"{self.seconds:.1f} s"
            why = f" ({self.broken})" if self.broken else ""
            return f"is cut off or damaged{why}: what could be read is the first {length}"
        return f"is damaged: what could be read is all but {self.damaged} pieces of it" if self.damaged else None


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Film]:
    """Open a video.

    Raises:
        UserError: it cannot be read, has no pictures, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("a video needs PyAV: pip install '.[video]' in the checkout, or pip install av") from error
    try:
        container = av.open(str(source))
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{source} cannot be read as a video ({first_line(error)}): it is cut off, or of an unknown format; copy "
            "it again, or convert it to MP4"
        ) from error
    with container:
        if not container.streams.video:
            raise UserError(f"{source} has no pictures, only {_kinds(container)}: choose a video")
        best = container.streams.best("video")  # rather than the picture of a cover
        video = next((stream for stream in container.streams.video if stream is best), container.streams.video[0])
        if video.codec_context is None:
            raise UserError(f"{source} has pictures of an unsupported codec: convert it to MP4 with H.264")
        video.thread_type = "AUTO"
        yield Film(container, video, list(container.streams.audio))


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


@dataclass
class Recorder:
    """A video that is written beside a film's sound.

    It begins with the first picture, whose size it has; sound that comes before it waits.

    Attributes:
        container: the open file.
        film: the video that it is made from.
        suffix: of the file to write; decides on the codec.
        turned: the pictures are the film's turned by a quarter, so that the sides of its pixels are swapped.
        last: time stamp of the last picture, in units of the film's time base; None before the first.
    """

    container: OutputContainer
    film: Film
    suffix: str
    turned: bool = False
    last: int | None = None
    _video: Any = None
    _sound: dict[int, Any] = field(default_factory=dict)
    _waiting: list[Packet[Any]] = field(default_factory=list)

    def begin(self, height: int, width: int) -> None:
        """Add the streams for pictures of this size."""
        _, codec, options = WRITTEN[self.suffix]
        film = self.film.video
        rate = film.average_rate or film.guessed_rate or Fraction(25)
        self._video = self.container.add_stream(codec, rate=rate, options=dict(options))
        context = self._video.codec_context
        self._video.width, self._video.height, self._video.pix_fmt = width, height, "yuv420p"
        context.time_base = film.time_base or Fraction(1, 90000)
        if ratio := film.sample_aspect_ratio:  # of pixels that are not square
            context.sample_aspect_ratio = 1 / ratio if self.turned else ratio
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        for stream in self.film.sound:
            if stream.codec_context.name in self.container.supported_codecs:
                self._sound[stream.index] = self.container.add_stream_from_template(stream)
            else:
                log.warning(
                    "the sound (%s) cannot be stored in a %s file and is left out: choose output=NAME.mkv to keep it",
                    *(stream.codec_context.name, self.suffix),
                )
        for packet in self._waiting:
            self.copy(packet)
        self._waiting.clear()

    def copy(self, packet: Packet[Any]) -> None:
        """Copy a packet of sound as it is."""
        if packet.dts is None:  # the end of the stream
            return
        if self._video is None:
            self._waiting.append(packet)
        elif (stream := self._sound.get(packet.stream.index)) is not None:
            packet.stream = stream
            self.container.mux(packet)

    def write(self, picture: Pixels, pts: int | None) -> None:
        """Encode a picture [H, W, 3] shown from `pts`, in units of the film's time base."""
        from av import VideoFrame

        picture = _even(picture)
        if self._video is None:
            self.begin(*picture.shape[:2])
        size = (self._video.width, self._video.height)
        if picture.shape[1::-1] != size:  # a film may change its size
            picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.colorspace, frame.color_range = BT709, LIMITED
        frame.time_base = self._video.codec_context.time_base
        self.last = frame.pts = self._after(pts)
        self.container.mux(self._video.encode(frame))

    def _after(self, pts: int | None) -> int:
        """Return a time stamp after the last one, also where the film's are missing or repeated."""
        context = self._video.codec_context
        if self.last is None:
            return 0 if pts is None else pts
        step = max(1, round(1 / (context.time_base * context.framerate))) if context.framerate else 1
        return self.last + step if pts is None else max(self.last + 1, pts)

    def end(self) -> None:
        """Encode what the encoder still holds."""
        if self._video is not None:
            self.container.mux(self._video.encode(None))


def _even(picture: Pixels) -> Pixels:
    """Repeat the last row and column of odd sides, which video codecs do not take."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def upright(frame: VideoFrame) -> Pixels:
    """Return the RGB pixels of a frame as players show it: turned by the file's rotation."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, quarters(frame)), np.uint8)


def quarters(frame: VideoFrame) -> int:
    """Return the number of quarters that a frame is turned by, anticlockwise, to be shown."""
    return round(frame.rotation / 90)


@dataclass(frozen=True)
class Painter:
    """Paints the pictures of a video.

    Attributes:
        classes: predicted classes.
        kind: `overlay`, `colour`, `confidence`, or `beside`: the original and the overlay.
    """

    classes: ClassSet
    kind: str

    def __call__(self, image: Pixels, found: Segmented) -> Pixels:
        """Paint the prediction of a frame."""
        if self.kind == "confidence":
            return heat(found.confidence)
        colour = colorize(found.ids, self.classes.palette)
        if self.kind == "colour":
            return colour
        blended = overlay(image, colour)
        return np.concatenate([image, blended], 1) if self.kind == "beside" else blended


def predict_video(source: Path, output: Path, batches: Batches, paint: Painter, progress: bool = False) -> int:
    """Write a video of its prediction, and return the number of frames.

    If it is interrupted or fails, what is done is kept beside `output` as `NAME.partial.SUFFIX`, and said.

    Raises:
        UserError: it cannot be read or written, or not completely (raised after the rest has been written).
    """
    part, suffix = part_of(output), output.suffix.lower()
    with opened(source) as film, _kept_if_partial(output, part, film):
        import av

        remove_parts(output.parent.glob(f".{output.name}.*.tmp"))
        try:
            with av.open(str(part), "w", format=WRITTEN[suffix][0]) as container:
                recorder = Recorder(container, film, suffix)
                try:
                    _record(film, recorder, batches, paint, progress)
                finally:
                    recorder.end()
        except av.FFmpegError as error:
            raise UserError(f"{output} cannot be written as a video ({first_line(error)}); {ROOM}") from error
        if film.read == 0:
            raise UserError(f"{source} has no picture that can be decoded: copy it again, or convert it to MP4")
        os.replace(part, output)
        log.info("written: %s (%d frames, %.1f s)", output, film.read, film.seconds)
        said = film.complaint()
    if said is not None:
        raise UserError(f"{source} {said}, and is in {output}: copy it again")
    return film.read


def _record(film: Film, recorder: Recorder, batches: Batches, paint: Painter, progress: bool) -> None:
    """Predict and write all frames, and copy the sound in between."""
    waiting: list[tuple[Pixels, int | None]] = []

    def flush() -> None:
        for (image, pts), logits in zip(waiting, batches.logits([image for image, _ in waiting]), strict=True):
            if isinstance(logits, UserError):
                raise logits
            recorder.write(paint(image, Segmented.of(logits)), pts)
        waiting.clear()

    for frame in track(_frames(film, recorder), "predict", film.total, disable=not progress):
        image, recorder.turned = upright(frame), quarters(frame) % 2 == 1
        if waiting and image.shape != waiting[0][0].shape:
            flush()
        waiting.append((image, frame.pts))
        if len(waiting) >= batches.room(image):
            flush()
    if waiting:
        flush()


def _frames(film: Film, recorder: Recorder) -> Iterator[VideoFrame]:
    for packet in film.packets():
        if packet.stream is film.video:
            yield from film.frames_of(packet)
        else:
            recorder.copy(packet)
    if film.broken is not None:  # otherwise the last packet has emptied the decoder
        yield from film.frames_of(None)


@contextlib.contextmanager
def _kept_if_partial(output: Path, part: Path, film: Film) -> Iterator[None]:
    """Keep what is written under another name if the block does not end, and say so."""
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException as error:
        names = (output.with_name(f"{output.stem}.partial{more}{output.suffix}") for more in ("", *range(2, 1000)))
        partial = next(name for name in names if not name.exists())  # an earlier one may be longer
        if film.read == 0 or not part.is_file():
            part.unlink(missing_ok=True)
            raise
        os.replace(part, partial)
        said = f"the first {film.seconds:.1f} s are in {partial}"
        if isinstance(error, Interrupted):
            error.line = f"interrupted: {said}"
        else:
            log.warning("stopped: %s", said)
        raise
