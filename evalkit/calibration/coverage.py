"""Whether printed 95 % intervals hold a known truth as often as they say.

1. A population is made and run once: prompts of a compiled model whose outcome is known, or held-out
   failures of which a frozen circuit flips a known share (the others have their cause outside
   every SAE).
2. Draws with replacement stand for repeated audits; the population's rate is the truth.
3. Each draw's interval is computed by the code that prints it: `stats.wilson` and `stats.clustered` for
   failure rates, `circuits.mode_circuits` for necessities, its choice of the circuit's size included.

Coverage of a discrete count swings with n and rate around its mean, so several of both are drawn.
"""

from __future__ import annotations

import random

from evalkit import stats
from evalkit.attribution.attribute import Coders
from evalkit.attribution.modes import ModeInput, measure_mode
from evalkit.calibrated import CoverageFigures
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.confirming import results_of
from evalkit.calibration.measuring import SIZES, SPEC
from evalkit.calibration.prompts import observe
from evalkit.calibration.wiring import MIXED, MOVED, Wiring
from evalkit.circuits import mode_circuits
from evalkit.models.cache import Progress, Step
from evalkit.records import InterventionRecord, SampleResult

RATES = (0.05, 0.2, 0.5, 0.8)
N_SAMPLES = (20, 60, 200)
N_GROUPS = (10, 30, 80)
GROUP_SIZES = (1, 2, 4, 8)
GROUP_RATES = (0.0, 0.1, 0.3, 0.9)
"""Of the groups, in turn: variants of one item fail together or not at all."""
N_HELD_OUT = (8, 12, 24, 48)
POPULATION = 240
N_FAILURES = 72  # 12 to choose from, 60 held out
N_DRAWS = 1000  # chosen: a coverage of 95 % known to ±1.4 % per row
MIXES = (MIXED, MIXED._replace(failing_too=(("nu",), ("nu",))))
"""Models whose circuit flips two failures of three, and one of three."""


def measure_coverage(
    seed: int, n_draws: int = N_DRAWS, progress: Progress = lambda step: None
) -> tuple[CoverageFigures, ...]:
    """Coverage of each kind of interval, one row per number of items and rate."""
    rng = random.Random(f"{seed}:coverage")
    rows = []
    parts = (_failure_rates, _clustered_rates, _necessities)
    for n, part in enumerate(parts):
        progress(Step("coverage", n, len(parts), "kinds"))
        rows += part(seed, n_draws, rng)
    progress(Step("coverage", len(parts), len(parts), "kinds"))
    return tuple(rows)


def _failure_rates(seed: int, n_draws: int, rng: random.Random) -> list[CoverageFigures]:
    """Wilson's interval of a rate over samples that do not hang together."""
    rows = []
    for truth in RATES:
        fails = _outcomes(seed, truth)
        for n in N_SAMPLES:
            intervals = (stats.wilson(sum(rng.choices(fails, k=n)), n) for _ in range(n_draws))
            n_covered = sum(_holds(i, sum(fails) / len(fails)) for i in intervals)
            rows.append(_row("failure_rate", n, sum(fails) / len(fails), n_draws, n_covered))
    return rows


def _outcomes(seed: int, rate: float) -> list[bool]:
    """Whether each prompt of a model's population fails, by running it."""
    observed = observe(compile_wiring(MOVED, seed), POPULATION, rate, seed)
    return [observed.outcomes[i] == "fail" for i, s in observed.samples.items() if not s.control]


def _clustered_rates(seed: int, n_draws: int, rng: random.Random) -> list[CoverageFigures]:
    """The cluster-robust interval over groups whose members tend to fail together."""
    fails, passes = (_outcomes(seed, r) for r in (1.0, 0.0))
    groups = []
    for n in range(POPULATION):
        size, rate = GROUP_SIZES[n % 4], GROUP_RATES[n // 4 % 4]
        members = [rng.choice(fails if rng.random() < rate else passes) for _ in range(size)]
        groups.append((sum(members), size))
    truth = sum(k for k, _ in groups) / sum(n for _, n in groups)
    mean = sum(n for _, n in groups) / len(groups)
    rows = []
    for n in N_GROUPS:
        intervals = (stats.clustered(rng.choices(groups, k=n)) for _ in range(n_draws))
        n_covered = sum(_holds(i, truth) for i in intervals)
        rows.append(_row("failure_rate_clustered", round(n * mean), truth, n_draws, n_covered))
    return rows


def _necessities(seed: int, n_draws: int, rng: random.Random) -> list[CoverageFigures]:
    """The interval of a mode circuit's necessity over held-out failures, frozen beforehand."""
    return [r for wiring in MIXES for r in _necessity(seed, wiring, n_draws, rng)]


def _necessity(seed: int, wiring: Wiring, n_draws: int, rng: random.Random) -> list[CoverageFigures]:
    chosen, held_out, results = _measured(seed, wiring)
    flips = {size: [r.flipped for rows in held_out for r in rows if r.size == size] for size in SIZES}
    truth = {size: sum(f) / len(f) for size, f in flips.items()}
    rows = []
    for n in N_HELD_OUT:
        n_covered = 0
        for _ in range(n_draws):
            drawn = [
                r.model_copy(update={"sample": f"draw-{k}"})
                for k, rows_of in enumerate(rng.choices(held_out, k=n))
                for r in rows_of
            ]
            [circuit] = mode_circuits(results, [*chosen, *drawn], {})
            assert circuit.necessity is not None and circuit.size is not None
            low, high = circuit.necessity.ci_low, circuit.necessity.ci_high
            assert low is not None and high is not None
            n_covered += low <= truth[circuit.size] <= high
        rows.append(_row("necessity", n, max(truth.values()), n_draws, n_covered))
    return rows


def _measured(
    seed: int, wiring: Wiring
) -> tuple[list[InterventionRecord], list[list[InterventionRecord]], list[SampleResult]]:
    """The ledger of one model: what chose its circuit, and per held-out failure what became of it."""
    observed = observe(compile_wiring(wiring, seed), N_FAILURES, 1.0, seed)
    mode = ModeInput(
        f"{wiring.name}:mode", observed.probe, observed.cases[:12], observed.cases[12:], 0, SIZES
    )
    audited = Coders("none", None, observed.compiled.saes)
    ledger = measure_mode(observed.compiled.model, mode, observed.prompts, audited, [], SPEC, seed)
    became: dict[str, list[InterventionRecord]] = {}
    for r in ledger:
        if r.purpose == "necessity" and r.control_kind == "none":
            became.setdefault(r.sample, []).append(r)
    return [r for r in ledger if r.purpose == "certify"], list(became.values()), results_of(observed)


def _row(interval: str, n_items: int, truth: float, n_draws: int, n_covered: int) -> CoverageFigures:
    return CoverageFigures.model_validate(
        {"interval": interval, "n_items": n_items, "truth": round(truth, 4), "n_draws": n_draws,
         "n_covered": n_covered}
    )  # fmt: skip


def _holds(interval: stats.Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth <= interval.high
