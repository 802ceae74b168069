"""A calibration model with a planted cause, run to its mode circuit as `failures.py` would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evalkit.attribution.attribute import Coders
from evalkit.attribution.modes import ModeInput, measure_mode, twin_case
from evalkit.attribution.multiverse import MultiverseInput, measure_multiverse
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.measuring import controls
from evalkit.calibration.prompts import Observed, observe
from evalkit.calibration.wiring import Wiring
from evalkit.circuits import mode_circuits
from evalkit.multiverse import best_of_headline, cells, explored, sizes_of, splits
from evalkit.planning import THRESHOLDS
from evalkit.records import (
    Attribution,
    AttributionSpec,
    Circuit,
    InterventionRecord,
    ModelRef,
    Plan,
    ProbeSpec,
    SampleResult,
    Suite,
)
from evalkit.splits import Split, halves, held_out_groups

GRID = {
    "multiverse_estimator": ("plain", "held", "both"),
    "multiverse_baseline": ("ablation", "contrast"),
    "multiverse_metric": ("flip", "margin"),
    "multiverse_split": ("0", "1", "2"),
    "multiverse_paraphrase": ("all",),
    "multiverse_budget": ("4", "8"),
    "sizes": ("1", "2", "4", "8"),
}


class Ran(NamedTuple):
    """A finished calibration run."""

    observed: Observed
    plan: Plan
    results: tuple[SampleResult, ...]
    ledger: list[InterventionRecord]
    audited: Coders
    controls: Sequence[Coders]

    def circuit(self, ledger: Sequence[InterventionRecord] | None = None) -> Circuit:
        """The graded circuit, as `results.tally` gives it."""
        rows = self.ledger if ledger is None else ledger
        drafts = mode_circuits(self.results, rows, self.plan.thresholds)
        [circuit] = explored(self.plan, self.results, rows, drafts)
        return circuit


def run_wiring(wiring: Wiring, n: int = 32, seed: int = 3, *, multiverse: bool = True) -> Ran:
    """Observe, divide, measure the mode circuit, and derive it again."""
    observed = observe(compile_wiring(wiring, seed), n, 1.0, seed)
    spec = AttributionSpec(confirm=8, multiverse="always")
    name = wiring.name
    samples = tuple(observed.samples.values())
    plan = Plan(
        suite=Suite(
            schema_version=1, id="planted", version="1.0.0", model=ModelRef(ref="m"), attribution=spec,
            probes=(ProbeSpec(id=name, failure_mode=name, kind="choice", samples=(), prompt="{{ input }}"),),
        ),
        suite_sha256="0" * 64, suite_files=(), samples=samples, batches=(), limit=None, seed=seed,
        model_ref="m", model_sha256="0" * 64, sae_sha256={}, dtype="float32",
        held_out_groups=held_out_groups(samples, 0.5, seed), thresholds=THRESHOLDS, grid=GRID, policy=None,
        n_earlier_runs=None,
    )  # fmt: skip
    done = Attribution(method="auto", no_attribution=None)
    results = tuple(
        SampleResult(
            id=s.id, probe=name, failure_mode=name, context="neutral", outcome=observed.outcomes[s.id],
            margin_nats=None, attribution=None if s.control else done, group=s.group, control=s.control,
        )
        for s in samples
    )  # fmt: skip
    audited, others = Coders("none", None, observed.compiled.saes), controls(observed)
    half = halves(plan, results, name, Split(0, "all"))
    cases = {c.sample.id: c for c in observed.cases}
    mode = ModeInput(
        f"{name}:{name}:mode", observed.probe, [cases[i] for i in half.discovery],
        [cases[i] for i in half.held_out], 1, sizes_of(plan, name),
    )  # fmt: skip
    ledger = measure_mode(observed.compiled.model, mode, observed.prompts, audited, others, spec, seed)
    ran = Ran(observed, plan, results, ledger, audited, others)
    return ran._replace(ledger=[*ledger, *derive_again(ran)]) if multiverse else ran


def derive_again(ran: Ran) -> list[InterventionRecord]:
    """The measurements of the multiverse."""
    name = ran.observed.compiled.wiring.name
    divided = {s: halves(ran.plan, ran.results, name, s) for s in splits(ran.plan)}
    [draft] = mode_circuits(ran.results, ran.ledger, ran.plan.thresholds)
    twins = [t for c in ran.observed.cases if (t := twin_case(c, ran.observed.prompts)) is not None]
    asked = MultiverseInput(
        draft.id, ran.observed.probe, [*ran.observed.cases, *twins], divided, cells(ran.plan),
        ("flip", "margin"), sizes_of(ran.plan, name), 0.8,
        best_of_headline(ran.ledger, ran.results, draft, [(c.kind, c.seed) for c in ran.controls]), (),
    )  # fmt: skip
    return measure_multiverse(
        ran.observed.compiled.model, asked, ran.observed.prompts, ran.audited, ran.controls, ran.plan.seed
    )
