"""Weights files from the Hugging Face hub, looked up in its local cache first so that later runs need no network."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

from uda_seg.errors import UserError

FILES = ("model.safetensors", "pytorch_model.bin")


def fetch(name: str) -> Path:
    """Return the path of a hub repository's weights file, downloading it if it is not cached.

    Args:
        name: `owner/repository`, optionally with `@revision`, as in `smp-hub/mit_b5.imagenet` or `nvidia/mit-b5`.

    Raises:
        UserError: no such repository or file, or not cached and no connection.
    """
    repository, _, revision = name.partition("@")
    said, reason = f"pretrained=hub:{name}", ""
    try:
        for cached in (True, False):
            for file in FILES:
                try:
                    return Path(hf_hub_download(repository, file, revision=revision or None, local_files_only=cached))
                except EntryNotFoundError as error:  # also raised without a connection
                    reason = _first_line(error)
    except HFValidationError:
        raise UserError(f"{said} is no name on the hub: write hub:owner/repository") from None
    except RepositoryNotFoundError:
        raise UserError(f"{said}: there is no such public repository on the hub; correct the name") from None
    except Exception as error:  # a download fails in as many ways as there are network stacks
        reason = _first_line(error)
    raise UserError(
        f"{said} is neither in the hub's cache nor can it be fetched ({reason}); run once with network access, or say "
        "pretrained=FILE"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
