"""Upload of a published network to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from uda_seg.errors import UserError
from uda_seg.models.hub import NAME, quiet
from uda_seg.runs.published import CARD, CONFIG, WEIGHTS
from uda_seg.storage.files import first_line


def check_name(repository: str) -> None:
    """Raise UserError if a name is not `owner/repository`."""
    found = NAME.fullmatch(repository)
    if found is None or found["revision"] is not None:
        raise UserError(f"push={repository} is no name on the hub: write push=OWNER/NAME")


def push(folder: Path, repository: str) -> str:
    """Upload a network's three files in one commit, creating the repository if needed, and return the commit's address.

    The token is that of `hf auth login`, or of the variable HF_TOKEN.

    Raises:
        UserError: no token, no connection, or no right to write there.
    """
    quiet()
    api, kept = HfApi(), f"the folder {folder} is complete and can be pushed later"
    try:
        if api.token is None and not _has_token():
            raise LocalTokenNotFoundError
        api.create_repo(repository, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=[CONFIG, WEIGHTS, CARD],
                commit_message="Upload of uda_seg",
            ).commit_url
        )  # fmt: skip
    except LocalTokenNotFoundError:
        raise UserError(f"push={repository}: not logged in to the hub: run `hf auth login`; {kept}") from None
    except HFValidationError as error:
        raise UserError(f"push={repository} is no name on the hub: write push=OWNER/NAME; {kept}") from error
    except HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else "?"
        cure = "log in as one who may write there" if code in (401, 403) else first_line(error)
        raise UserError(f"push={repository}: the hub refuses ({code}): {cure}; {kept}") from error
    except Exception as error:  # an upload fails in as many ways as there are network stacks
        raise UserError(f"push={repository}: the hub cannot be reached ({first_line(error)}); {kept}") from error


def _has_token() -> bool:
    from huggingface_hub import get_token  # looks for it anew

    return get_token() is not None
