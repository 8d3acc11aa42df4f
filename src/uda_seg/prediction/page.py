"""The page of `predict serve=true`, made with Gradio (the extra `serve`).

It is served to this machine alone unless another host is asked for, asks nothing of any other server (its policy
forbids it to the browser), and keeps no image: what is dropped there is deleted when the command ends.
"""

from __future__ import annotations

import contextlib
import html
import ipaddress
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from uda_seg.data.images import image_of, may_be_deep, read_bytes, used_bits
from uda_seg.data.integrity import check_image
from uda_seg.errors import Interrupted, UserError
from uda_seg.prediction.comparison import page_of, predictions
from uda_seg.prediction.outputs import Pixels
from uda_seg.runs.trained import TrainedSegmentor

log = logging.getLogger(__name__)

STYLE = Path(__file__).with_name("page.css")
MOST = 4  # networks side by side
EMPTY = '<div class="uda-empty"><div>Drop an image at the left, paste one, or use the camera.</div></div>'
HEAD = "<h1>Segment an image</h1><p>uda_seg, on {device}. Images stay on the machine that serves this page.</p>"
FONT, MONO = ["ui-sans-serif", "system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # the reader's own
# What the browser may load: nothing from elsewhere. Gradio's own code needs inline scripts and styles.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'"
)


class OwnPolicy:
    """ASGI middleware that sends `POLICY` with every response."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Answer a request."""

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": [*headers, (b"referrer-policy", b"no-referrer")]}
            await send(message)

        await self.app(scope, receive, sent)


def answer(networks: Mapping[str, TrainedSegmentor], bits: int | None, path: str | None, chosen: list[str]) -> str:
    """Predict the image in a file by the chosen networks, and return the HTML of the result.

    Raises:
        UserError: the image cannot be read or is too large for the memory.
    """
    if path is None:
        return EMPTY
    if not chosen:
        return EMPTY.replace("Drop an image at the left, paste one, or use the camera.", "Choose a network.")
    image = read_upright(Path(path), bits)
    return page_of(image, predictions(image, {name: networks[name] for name in chosen[:MOST]}))


def read_upright(path: Path, bits: int | None) -> Pixels:
    """Read an uploaded image as `predict` reads those of a folder."""
    content = read_bytes(path)
    check_image(content, path.name)
    if bits is None and may_be_deep(content):
        bits = used_bits([lambda count: content[:count] if count > 0 else content], "predict.bits")
    return image_of(content, bits, path.name)


def built(networks: Mapping[str, TrainedSegmentor], selected: list[str], bits: int | None) -> Any:
    """Build the page, a `gradio.Blocks`."""
    gradio = _gradio()

    def shown(path: str | None, chosen: list[str]) -> str:
        try:
            return answer(networks, bits, path, chosen)
        except UserError as error:
            raise gradio.Error(html.escape(str(error)), title="This image was not predicted") from error

    device = next(iter(networks.values())).device
    with gradio.Blocks(title="uda_seg", analytics_enabled=False, fill_width=True) as page:
        gradio.HTML(HEAD.format(device=device), elem_id="head")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                image = gradio.Image(
                    label="Image",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    height=300,
                    elem_id="image",
                )
                choice = gradio.CheckboxGroup(
                    list(networks), value=selected, label=f"Networks, up to {MOST} side by side", elem_id="networks"
                )
            with gradio.Column(scale=3, min_width=320):
                result = gradio.HTML(EMPTY, elem_id="result")
        gradio.on([image.change, choice.change], shown, [image, choice], result, api_name=False, show_progress="full")
    return page


def _gradio() -> Any:
    """Import Gradio, which is told to send nothing anywhere."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("serve=true needs Gradio: pip install '.[serve]' in the checkout") from error
    return gradio


@contextlib.contextmanager
def served(
    networks: Mapping[str, TrainedSegmentor], selected: list[str], bits: int | None, host: str, port: int
) -> Iterator[str]:
    """Serve the page within the block, and yield its address.

    Raises:
        UserError: the port is in use, the host is not of this machine, or Gradio is not installed.
    """
    from starlette.middleware import Middleware

    gradio, port = _gradio(), free_port(host, port)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks the page whether it is there
    theme = gradio.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=FONT, font_mono=["ui-monospace", "monospace"]
    )
    with tempfile.TemporaryDirectory(prefix="uda_seg-page-") as folder, _environment(host, folder):
        page = built(networks, selected, bits)
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            css=STYLE.read_text("utf-8"),
            app_kwargs={"middleware": [Middleware(OwnPolicy)]},
        )
        try:
            yield f"http://{_reached(host)}:{port}"
        finally:
            page.close(verbose=False)


def serve(
    networks: Mapping[str, TrainedSegmentor], selected: list[str], bits: int | None, host: str, port: int
) -> None:
    """Serve the page until Ctrl-C."""
    with contextlib.suppress(Interrupted), served(networks, selected, bits, host, port) as address:
        if not is_loopback(host):
            log.warning("predict.host=%s: other machines can reach this page, and it has no password", host)
        log.info("the page is at %s; Ctrl-C ends it", address)
        threading.Event().wait()


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached by this machine alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def free_port(host: str, port: int) -> int:
    """Return the port if it is free, any free one for 0.

    Raises:
        UserError: it is in use, or the host is not of this machine.
    """
    try:
        [(family, *_), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        said = str(error.strerror or error)
        cure = "choose another with predict.port=N (0: any)" if isinstance(error.errno, int) and error.errno > 0 else ""
        raise UserError(f"cannot serve at {host}:{port} ({said}): {cure or 'give predict.host=127.0.0.1'}") from error


def _reached(host: str) -> str:
    """Return the host by which this machine reaches the page."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


@contextlib.contextmanager
def _environment(host: str, folder: str) -> Iterator[None]:
    """Let Gradio keep uploads in this folder, and ask the page, at its start, without a proxy."""
    own = ",".join(filter(None, (os.environ.get("NO_PROXY"), "localhost", "127.0.0.1", _reached(host))))
    changed = {"GRADIO_TEMP_DIR": folder, "NO_PROXY": own, "no_proxy": own}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
