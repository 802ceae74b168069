"""Suites: find one, load it with file and line, render all its samples.

find_suite → load_suite → render_samples
"""

from __future__ import annotations

from pathlib import Path

from evalkit.errors import ConfigError, did_you_mean
from evalkit.suite_files import Item, LoadedSuite, load_policy, load_suite, scorer_of
from evalkit.suite_samples import render_samples

__all__ = [
    "Item",
    "LoadedSuite",
    "find_suite",
    "load_policy",
    "load_suite",
    "render_samples",
    "scorer_of",
    "shipped_suites",
    "suite_starter",
]


def shipped_suites() -> dict[str, Path]:
    """Name → file of the suites that come with evalkit."""
    package = Path(__file__).parent
    for folder in (package / "_suites", package.parent / "suites"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def find_suite(ref: str) -> Path:
    """The suite's file: `ref` is a path, or the name of a shipped suite.

    Raises:
        ConfigError: it is neither.
    """
    shipped = shipped_suites()
    path = Path(ref)
    if path.exists() and not path.is_dir():
        return path
    if ref in shipped:
        return shipped[ref]
    raise ConfigError(f"{ref}: no such file and no shipped suite of that name{did_you_mean(ref, shipped)}")


def suite_starter() -> str:
    """A commented suite to begin from; it loads as it stands."""
    return (Path(__file__).parent / "starter_suite.yaml").read_text("utf-8")
