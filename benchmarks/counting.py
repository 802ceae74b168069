"""FLOPs, CPU time and peak memory of one call; needs torch alone, so that peers in their own environments
are counted by the same code."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

DoneT = TypeVar("DoneT")


class Cost(NamedTuple):
    """What a call took."""

    flops: int
    cpu_s: float
    peak_mib: float
    """Highest resident memory during the call − resident memory before it (Linux)."""


class _Counter(TorchDispatchMode):
    """Sums the FLOPs of matrix products, forward and backward, as torch's own counter defines them.

    torch's `FlopCounterMode` also tracks modules by hooks, which `autograd.grad` on a non-leaf refuses.
    """

    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def cost_of(work: Callable[[], DoneT]) -> tuple[DoneT, Cost]:
    """Run once for FLOPs and memory, once more for the clock, and return the second result."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before = _memory_kib("VmRSS")
    with _Counter() as counter:
        work()
    peak = max(_memory_kib("VmHWM") - before, 0)
    start = time.process_time()
    done = work()
    return done, Cost(counter.flops, time.process_time() - start, peak / 1024)


def _memory_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def one_thread() -> None:
    """CPU times of one core."""
    torch.set_num_threads(1)
