"""What this machine can do: one check per line, with the remedy for each that fails."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import shutil
from collections.abc import Iterator
from typing import NamedTuple


class Check(NamedTuple):
    """One thing that was looked for."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def checks() -> Iterator[Check]:
    """Python packages, PDF libraries, cache folder, disk, device."""
    for package in ("torch", "transformers", "weasyprint", "pydantic"):
        try:
            yield Check(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(package, False, "missing", f"pip install {package}")
    for library in ("pango-1.0", "pangoft2-1.0", "harfbuzz-subset"):
        found = ctypes.util.find_library(library)
        remedy = "Debian, Ubuntu: apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
        yield Check(f"lib{library} (for the PDF)", found is not None, found or "missing", remedy)
    yield _cache()
    yield _device()


def _cache() -> Check:
    from evalkit.models.cache import cache_dir

    folder = cache_dir()
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free_gb = shutil.disk_usage(place).free / 1e9
    enough = free_gb > 2
    return Check(
        "cache folder",
        enough,
        f"{folder}, {free_gb:.0f} GB free",
        "free 2 GB, or set EVALKIT_CACHE to another disk",
    )


def _device() -> Check:
    import torch

    devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    return Check("devices", True, ", ".join([f"cpu ({torch.get_num_threads()} threads)", *devices]))
