"""Files from the Hugging Face hub: encoders' weights, and whole networks that this package has published."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from uda_seg.errors import UserError

HUB = "hub:"
FILES = ("model.safetensors", "pytorch_model.bin")
# The revision becomes part of a path in the hub's cache.
NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>(?!\.)[\w-]+([./]?[\w-]+)*))?", re.ASCII)


def fetch(name: str) -> Path:
    """Return the path of a hub repository's weights file, downloading it if it is not cached.

    The cache is looked up first, so that later runs need no network.

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


def described(name: str, weights: Path) -> Mapping[str, Any]:
    """Return what a hub repository says of its weights in `config.json`.

    Args:
        name: as for `fetch`.
        weights: what `fetch` returned; the description is of the same commit, and cached with it.

    Returns:
        Its contents; empty if there is none, or neither cached nor a connection.
    """
    try:
        file = hf_hub_download(name.partition("@")[0], "config.json", revision=weights.parent.name)
        content = json.loads(Path(file).read_bytes())
    except Exception:  # most repositories describe nothing, and without a connection the weights have to do
        return {}
    return content if isinstance(content, dict) else {}


def download(name: str, files: Sequence[str]) -> Path:
    """Return the folder with the given files of a repository, all of one revision, as the hub has them now.

    Without a connection it is the cached one.

    Args:
        name: `owner/repository`, optionally with `@revision`: a branch, a tag or a commit.
        files: names of files at the repository's top.

    Raises:
        UserError: no such name, repository, revision or file, or neither cached nor a connection.
    """
    said, found = f"{HUB}{name}", NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{said} is no name on the hub: write hub:owner/repository, or hub:owner/repository@revision")
    quiet()
    revision, folder = found["revision"], Path()
    for file in files:
        try:
            folder = Path(hf_hub_download(found["repository"], file, revision=revision)).parent
        except Exception as error:  # a download fails in as many ways as there are network stacks
            raise UserError(f"{said} {_failed(error, said, file)}") from error
        revision = folder.name  # the commit: all files of one revision, also if it moves on meanwhile
    return folder


def _failed(error: Exception, said: str, file: str) -> str:
    """Say why a download failed and what to do, in words that follow the name `said`."""
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"is neither in the hub's cache nor can it be fetched ({_first_line(error)}); run once with network access"
        )
    if isinstance(error, EntryNotFoundError):
        own = "it is no network that uda_seg has published"
        return f"has no {file}: {own}; weights of an encoder alone are given as pretrained={said}"
    if isinstance(error, HFValidationError):
        return "is no name on the hub: write hub:owner/repository"
    if isinstance(error, GatedRepoError):
        return "is not open: its owner has to grant access first, to an account of `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "is wrong: there is no such repository on the hub; correct the name, or if it is private `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "is wrong: the repository has no revision of that name; correct what follows the @"
    return f"cannot be fetched ({_first_line(error)}); try again"


def quiet() -> None:
    """Silence the lines that the hub's client logs for every request."""
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
