"""The two consoles of the verbs, and the bars that say how far a long step is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from evalkit.models.cache import Progress, Step

out = Console()
err = Console(stderr=True)


class Bars(Bar):
    """Progress bars, and what stands below them."""

    below: RenderableType | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then `below`."""
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Bars with an estimate, one per step under way; plain lines where there is no terminal."""
    with bars() as (_, show):
        yield show


@contextlib.contextmanager
def bars() -> Iterator[tuple[Bars, Progress]]:
    """The bars themselves, and what tells them of a step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err, disable=not err.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def show(step: Step) -> None:
            if step.what not in tasks:
                tasks[step.what] = bar.add_task(step.what, total=step.total, done="")
                if not err.is_terminal:
                    err.print(f"{step.what} …", highlight=False)
            bar.update(tasks[step.what], completed=step.done, total=step.total, done=_how_far(step))

        yield bar, show


def _how_far(step: Step) -> str:
    """`31.2 of 92.9 MB`, `3 of 7 batches`."""
    if step.unit == "bytes":
        total = f" of {step.total / 1e6:.1f}" if step.total else ""
        return f"{step.done / 1e6:.1f}{total} MB"
    return f"{step.done} of {step.total} {step.unit}"
