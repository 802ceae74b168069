"""Small real models for every test: random Llama and GPT-2 directories (see `tiny_models.py`)."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
import torch
from tiny_models import save_tiny, save_tiny_whisper

hypothesis.settings.register_profile("any-machine", deadline=None)  # a loaded machine is no fault of the code
hypothesis.settings.load_profile("any-machine")


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def tiny_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def whisper_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper") / "model")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
