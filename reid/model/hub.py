"""Models on Hugging Face's hub: `hf:org/name` is fetched into its cache, and a folder is uploaded to it.

A model there is the folder that `reid export --format hub` writes. Only the files that are read are fetched: weights as
safetensors and a description as JSON, which cannot run code. Hugging Face's own variables apply: HF_TOKEN, HF_HOME,
HF_ENDPOINT, HF_HUB_OFFLINE.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reid.model.saved import MODEL

PREFIX = "hf:"
ABOUT, CARD = "about.json", "README.md"
PATH_OR_HUB = f"a run's folder, one of its checkpoints, a folder of --format hub, or {PREFIX}ORG/NAME"


def resolve(name: str) -> str:
    """Return the folder of a model: for `hf:org/name` or `hf:org/name@revision` its copy in the cache, else `name`.

    Without internet, the copy that was fetched before is used. Raises ValueError if there is no such model.
    """
    if not name.startswith(PREFIX):
        return name
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *words: Any, **knobs: Any) -> None:
            super().__init__(*words, **knobs | {"disable": None})  # only on a terminal

    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    with _naming_errors(name):
        files = [ABOUT, MODEL, CARD]
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=files, tqdm_class=Bar)
    if not is_published(Path(folder)):
        raise ValueError(f"{name} is no model of this program: it has no {ABOUT} and {MODEL}; `reid export --push`")
    return folder


def is_published(path: Path) -> bool:
    """Return whether a folder is a model as the hub has it."""
    return (path / ABOUT).is_file() and (path / MODEL).is_file()


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload the files of a model, in one commit, and return its page. The repository is made if it does not exist.

    Args:
        folder: as `reid export --format hub` writes it.
        repository: org/name.
        private: make a new repository private.

    Raises:
        ValueError: the key, the right or the network is missing.
    """
    from huggingface_hub import HfApi

    with _naming_errors(f"--push {repository}"):
        api = HfApi()
        page = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[ABOUT, MODEL, CARD],
            commit_message="Add model",
        )
    return str(page)


def check_key(repository: str) -> None:
    """Raise ValueError if there is no key to upload with, or if the name is none, before the work."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    with _naming_errors(f"--push {repository}"):
        validate_repo_id(repository)
    if "/" not in repository:
        raise ValueError(f"--push {repository}: give ORG/NAME, or USER/NAME")
    if not get_token():
        raise ValueError(
            f"--push {repository}: no key; run `hf auth login`, or set HF_TOKEN to a key with write access"
        )


@contextmanager
def _naming_errors(name: str) -> Iterator[None]:
    """Turn errors of the hub and of the network into a ValueError that names the model and the fix."""
    from huggingface_hub import constants, errors

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what it warns of is in the error
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(f"{name}: access must be granted; ask for it on its page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the name; for a private one run `hf auth login`, or set HF_TOKEN"
        raise ValueError(f"{name}: {constants.ENDPOINT} has no such model, or it is private; {fix}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: the model has no such revision; leave out @… for the newest") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        fix = "the key may not write there: use one with write access" if status in (401, 403) else "try again later"
        raise ValueError(f"{name}: {constants.ENDPOINT} answered {status or error}; {fix}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        unreachable = f"{constants.ENDPOINT} cannot be reached; check the network"
        if not name.startswith(PREFIX):
            raise ValueError(f"{name}: {unreachable}") from error
        fix = "or copy the model's folder here and give its path"
        raise ValueError(f"{name} is not in the cache and {unreachable}, {fix}") from error
    except errors.HFValidationError as error:
        raise ValueError(
            f"{name}: not a name of the hub, as {PREFIX}org/name ({str(error).splitlines()[0]})"
        ) from error
