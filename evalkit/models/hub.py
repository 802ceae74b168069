"""A snapshot of a Hugging Face hub repository: weights as safetensors, configuration, tokenizer.

The hub is asked first, with a short timeout, whether it has the revision. If it does not answer, a
snapshot that this machine already holds is used. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME`
mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub import utils as hub_utils
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from evalkit.errors import FetchError, ModelError
from evalkit.models.cache import Progress

_TransportError: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]
# the base class of the HTTP library that this version of the hub's client is built on
_TIMEOUT_S = 5.0  # chosen: an unreachable hub is noticed within seconds
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "README.md"]
_UNWANTED = ["*/*", "consolidated*"]  # subfolders and second copies of the weights
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Snapshot(NamedTuple):
    """One commit of a hub repository, on this machine."""

    directory: Path
    commit: str
    source: str
    """In words; says so if the revision asked for was not a commit."""
    licence: str | None
    """As the hub states it; None if it states none or was not reached."""


def snapshot(repo: str, revision: str | None, *, offline: bool, progress: Progress | None) -> Snapshot:
    """The repository `org/name` at `revision` (default `main`), downloaded unless it is here already.

    Raises:
        ModelError: The name is malformed, or the hub has no such repository or revision.
        FetchError: Offline or unreachable, and not on this machine.
    """
    _check_name(repo)
    asked = revision or constants.DEFAULT_REVISION
    licence, unreachable = None, "this run is offline" if offline else ""
    if not offline:
        try:
            licence = _ask(repo, asked)
        except (_TransportError, OSError) as error:
            unreachable = f"the hub cannot be reached ({_cause(error)})"
    with _hub_silent(progress is None):
        directory = _download(repo, asked, unreachable=unreachable)
    return Snapshot(directory, directory.name, _in_words(repo, asked), licence)


def _check_name(repo: str) -> None:
    try:
        hub_utils.validate_repo_id(repo)  # type: ignore[attr-defined]
        well_formed = repo.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise ModelError(f"hf:{repo}: not a repository name; write hf:organisation/name")


def _ask(repo: str, revision: str) -> str | None:
    """The licence that the hub states, once it has answered that it has this revision."""
    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except GatedRepoError as error:
        raise FetchError(f"hf:{repo}: gated; accept its terms on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"hf:{repo}: the hub has no such repository, or it is private (set HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"hf:{repo}: the repository has no revision '{revision}'; give a commit or tag"
        ) from error
    licence = info.card_data.get("license") if info.card_data else None
    return str(licence) if licence else None


def _download(repo: str, revision: str, *, unreachable: str) -> Path:
    try:
        path = snapshot_download(
            repo, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED,
            local_files_only=bool(unreachable), endpoint=constants.ENDPOINT, etag_timeout=_TIMEOUT_S,
        )  # fmt: skip
    except (_TransportError, LocalEntryNotFoundError, OSError) as error:
        reason = unreachable or f"the download failed ({_cause(error)})"
        raise FetchError(
            f"hf:{repo}: not on this machine, and {reason}; copy a model directory here and give its path"
        ) from error
    return Path(path)


def _cause(error: Exception) -> str:
    """`status 503`, or the first line of the message."""
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__


def _in_words(repo: str, asked: str) -> str:
    if _COMMIT.fullmatch(asked):
        return f"Hugging Face hub, {repo}, commit {asked}"
    return f"Hugging Face hub, {repo}, revision '{asked}' (not pinned to a commit)"


@contextmanager
def _hub_silent(silent: bool) -> Iterator[None]:
    """huggingface_hub draws bars and logs its retries; both only where progress was asked for."""
    bars, level = not are_progress_bars_disabled(), hub_logging.get_verbosity()
    if silent:
        disable_progress_bars()
        hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)
        if silent and bars:
            enable_progress_bars()
