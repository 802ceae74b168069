"""A snapshot of a Hugging Face hub repository: weights as safetensors, configuration, tokenizer.

The hub is asked once, with a short timeout, which commit a revision stands for. If it does not
answer, a snapshot that this machine already holds is used. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME`
mean what they mean to huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
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
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class Snapshot(NamedTuple):
    """One commit of a hub repository, on this machine."""

    directory: Path
    commit: str
    source: str
    """In words; says so if the revision asked for was not a commit."""
    licence: str | None
    """As the hub states it; None if it states none or was not reached."""


class _Answer(NamedTuple):
    commit: str
    licence: str | None


def snapshot(repo: str, revision: str | None, *, offline: bool, progress: Progress | None) -> Snapshot:
    """The repository `org/name` at `revision` (default `main`), downloaded unless it is here already.

    Raises:
        ModelError: The name is malformed, or the hub has no such repository or revision.
        FetchError: Offline or unreachable, and not on this machine.
    """
    if not _REPO.fullmatch(repo):
        raise ModelError(f"hf:{repo}: not a repository name; write hf:organisation/name")
    asked = revision or constants.DEFAULT_REVISION
    answer, unreachable = None, "this run is offline"
    if not offline:
        try:
            answer = _ask(repo, asked)
        except (_TransportError, OSError) as error:
            unreachable = f"the hub cannot be reached ({_cause(error)})"
    commit = answer.commit if answer else asked
    with _hub_bars(shown=progress is not None):
        directory = _download(repo, commit, local_only=answer is None, unreachable=unreachable)
    return Snapshot(directory, directory.name, _in_words(repo, asked), answer.licence if answer else None)


def _ask(repo: str, revision: str) -> _Answer:
    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo, revision=revision, timeout=_TIMEOUT_S)
    except GatedRepoError as error:
        raise FetchError(f"hf:{repo}: gated; accept its terms on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"hf:{repo}: the hub has no such repository, or it is private (set HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise ModelError(f"hf:{repo}: not a repository name; write hf:organisation/name") from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"hf:{repo}: the repository has no revision '{revision}'; give a commit or tag"
        ) from error
    licence = info.card_data.get("license") if info.card_data else None
    return _Answer(info.sha or revision, str(licence) if licence else None)


def _download(repo: str, commit: str, *, local_only: bool, unreachable: str) -> Path:
    try:
        path = snapshot_download(
            repo, revision=commit, allow_patterns=_WANTED, ignore_patterns=_UNWANTED,
            local_files_only=local_only, endpoint=constants.ENDPOINT, etag_timeout=_TIMEOUT_S,
        )  # fmt: skip
    except (_TransportError, LocalEntryNotFoundError, OSError) as error:
        if local_only or isinstance(error, LocalEntryNotFoundError):
            reason = unreachable if local_only else "the hub cannot be reached"
        else:
            reason = f"the download failed ({_cause(error)})"
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
def _hub_bars(*, shown: bool) -> Iterator[None]:
    """huggingface_hub draws its own bars; silence them unless progress was asked for."""
    silence = not shown and not are_progress_bars_disabled()
    if silence:
        disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            enable_progress_bars()
