"""How training stands: a table that stays on the screen, or plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.table import Table

from evalkit.cli_console import bars, err

if TYPE_CHECKING:
    from evalkit.models.cache import Progress
    from evalkit.saes.training import Progress as Training

LINE_EVERY_S = 30.0  # chosen: a log of some hundred lines an hour


@contextlib.contextmanager
def training_display(total: int) -> Iterator[tuple[Progress, Callable[[Training], None]]]:
    """What tells the screen of a long step, and of training; `total` is in positions."""
    first: list[tuple[float, int]] = []
    printed_at = [-LINE_EVERY_S]

    with bars() as (shown, progress):

        def live(step: Training) -> None:
            now = time.monotonic()
            first[:1] = first[:1] or [(now, step.tokens)]
            began, tokens = first[0]
            rate = (step.tokens - tokens) / (now - began) if now > began and step.tokens > tokens else None
            if err.is_terminal:
                shown.below = training_table(step, total, rate)
            elif now - printed_at[0] >= LINE_EVERY_S or step.tokens >= total:
                printed_at[0] = now
                err.print(training_line(step, total, rate), highlight=False, soft_wrap=True)

        yield progress, live


def training_table(step: Training, total: int, rate: float | None) -> Table:
    """One row per SAE below what they share."""
    table = Table("SAE", "explained variance", "L0", "dead", title=_shared(step, total, rate))
    for name, live in step.saes.items():
        table.add_row(name, f"{live.explained_variance:.3f}", f"{live.l0:.1f}", f"{live.n_dead:,}")
    return table


def training_line(step: Training, total: int, rate: float | None) -> str:
    """The same in one line."""
    saes = "; ".join(
        f"{name}: explained variance {live.explained_variance:.3f}, L0 {live.l0:.1f}, {live.n_dead} dead"
        for name, live in step.saes.items()
    )
    return f"{_shared(step, total, rate)}; {saes}"


def _shared(step: Training, total: int, rate: float | None) -> str:
    """`12,288 of 3,000,000 positions, 1,204 per second, 0:41:20 left, learning rate 0.0015`."""
    left = max(total - step.tokens, 0)
    speed = f", {rate:,.0f} per second, {timedelta(seconds=round(left / rate))} left" if rate else ""
    return f"{step.tokens:,} of {total:,} positions{speed}, learning rate {step.lr:.2g}"
