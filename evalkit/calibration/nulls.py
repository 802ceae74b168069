"""How often an audit confirms a circuit where there is none to find.

Each null run compiles a model, gives it to the ordinary selection, controls and grade of a mode circuit
(`confirming`), and notes the grade. Twelve kinds of run take turns, in three families:
1. planted: the failure's cause has no decoder row; correlates fire (some loud, one with a steep gradient);
2. random SAE: the cause is there, and a frozen-random SAE is audited against five others;
3. permuted: which answer counts as the failure is permuted over the items, under both kinds of SAE.

The claim that is tested: at most 5 % of null circuits are confirmed. A run of 300 supports it if at most 8
are, since the one-sided 95 % Clopper-Pearson bound of 8 of 300 lies below 5 % and that of 9 above.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from typing import NamedTuple

import torch

from evalkit import stats
from evalkit.calibrated import ModeFigures, NullFamily, NullFigures, NullName
from evalkit.calibration.compiling import Compiled, compile_wiring, knowing_nothing
from evalkit.calibration.confirming import grade_mode
from evalkit.calibration.wiring import CONJUNCTION, CORRELATE, MOVED, NULLS, OVERSHOT, SATURATED, Wiring
from evalkit.digests import digest_bytes
from evalkit.errors import RunError
from evalkit.models.cache import Progress, Step
from evalkit.records import Count, Record

NULL_SEEDS = 1000  # seeds of null models stand apart from those of planted ones
CLAIMED = 0.05
"""Share of null circuits that may be confirmed; the level of the test in `circuits`."""
SURPRISE = 0.01  # chosen: a count that a test at CLAIMED shows in under 1 % of calibrations counts against it


class NullKind(NamedTuple):
    """One kind of null run."""

    family: NullName
    wiring: Wiring
    random: bool
    """A frozen-random SAE is audited instead of the exact one."""
    permuted: bool


KINDS = (
    *(NullKind("planted", w, False, False) for w in NULLS),
    *(NullKind("random_sae", w, True, False) for w in (MOVED, CONJUNCTION, OVERSHOT, CORRELATE)),
    *(NullKind("permuted", w, False, True) for w in NULLS[:2]),
    *(NullKind("permuted", w, True, True) for w in (CONJUNCTION, SATURATED)),
)

Grades = Callable[[Compiled, int, bool], ModeFigures]
"""How a model's mode circuit is graded, given a seed and whether labels are permuted."""


class _Line(Record):
    """One finished run in a checkpoint."""

    stamp: str
    k: Count
    mode: ModeFigures


def run_nulls(
    seed: int,
    n: int,
    *,
    grades: Grades = grade_mode,
    checkpoint: Path | None = None,
    progress: Progress = lambda step: None,
) -> NullFigures:
    """Grade `n` null circuits; run k has seed NULL_SEEDS · (seed + 1) + k.

    Args:
        checkpoint: finished runs are appended to this file, and those in it are not run again; lines of
            another seed or of other code are passed over.

    Raises:
        RunError: the checkpoint cannot be read or written.
    """
    stamp = _stamp(seed)
    done = _read(checkpoint, stamp)
    graded = []
    for k in range(n):
        progress(Step("null runs", k, n, "circuits"))
        if k not in done:
            done[k] = _grade(k, seed, grades)
            _append(checkpoint, _Line(stamp=stamp, k=k, mode=done[k]))
        graded.append((KINDS[k % len(KINDS)].family, done[k]))
    progress(Step("null runs", n, n, "circuits"))
    return summarise(graded)


def summarise(graded: Sequence[tuple[NullName, ModeFigures]]) -> NullFigures:
    """Counts per family, and the interval of all."""
    families = []
    for family in dict.fromkeys(f for f, _ in graded):
        modes = [m for f, m in graded if f == family]
        families.append(
            NullFamily(
                family=family,
                n=len(modes),
                n_flipping=sum(m.n_flipped > 0 for m in modes),
                n_confirmed=sum(m.confirmed for m in modes),
                grades=dict(sorted(Counter(m.grade for m in modes).items())),
            )
        )
    confirmed = tuple(m for _, m in graded if m.confirmed)
    interval = stats.clopper_pearson(len(confirmed), len(graded))
    return NullFigures(
        n=len(graded),
        n_confirmed=len(confirmed),
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        families=tuple(families),
        confirmed=confirmed,
    )


def allowed(n: int) -> int:
    """The largest number of `n` null circuits that may be confirmed.

    From 59 runs on: the most for which the one-sided 95 % bound stays below CLAIMED (8 of 300). Fewer
    runs can show no such bound, and a count counts against the test if it is a surprise at CLAIMED.
    """
    bounds = [k for k in range(n) if (i := stats.clopper_pearson(k, n, 0.9)) is not None and i.high < CLAIMED]
    if bounds:
        return max(bounds)
    return max(k for k in range(n + 1) if _chance(k, n) >= SURPRISE)


def _chance(k: int, n: int) -> float:
    """Probability of at least `k` of `n` at the claimed rate."""
    return sum(comb(n, j) * CLAIMED**j * (1 - CLAIMED) ** (n - j) for j in range(k, n + 1))


def _grade(k: int, seed: int, grades: Grades) -> ModeFigures:
    kind, own = KINDS[k % len(KINDS)], NULL_SEEDS * (seed + 1) + k
    compiled = compile_wiring(kind.wiring, own)
    if kind.random:
        compiled = knowing_nothing(compiled, own)
    return grades(compiled, own, kind.permuted)


# ------------------------------------------------------------------------------------------- checkpoint


def _stamp(seed: int) -> str:
    """Digest of the seed, the library and every source file of this package."""
    sources = sorted(Path(stats.__file__).parent.rglob("*.py"))
    return digest_bytes(f"{seed} {torch.__version__}\n".encode() + b"".join(p.read_bytes() for p in sources))


def _read(checkpoint: Path | None, stamp: str) -> dict[int, ModeFigures]:
    if checkpoint is None or not checkpoint.exists():
        return {}
    try:
        text = checkpoint.read_text("utf-8")
        lines = [_Line.model_validate_json(line) for line in text.splitlines() if line.endswith("}")]
    except (OSError, ValueError) as error:
        raise RunError(f"{checkpoint}: no checkpoint of null runs; remove it") from error
    return {line.k: line.mode for line in lines if line.stamp == stamp}


def _append(checkpoint: Path | None, line: _Line) -> None:
    if checkpoint is None:
        return
    try:
        with checkpoint.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
    except OSError as error:
        raise RunError(f"{checkpoint}: cannot write ({error.strerror}); name another file") from error
