"""The mode circuit of a calibration model: chosen on one half, tested on the other, graded as in an audit.

The same code as in a run (`attribution.modes`, `circuits`), on enough failures to be decided. Models with
planted causes show that a true circuit can be confirmed; null models, that a false one is not.
"""

from __future__ import annotations

from evalkit.attribution.attribute import Coders
from evalkit.attribution.modes import ModeInput, measure_mode
from evalkit.calibrated import ModeFigures
from evalkit.calibration.compiling import Compiled
from evalkit.calibration.measuring import SIZES, SPEC, controls, weak_features
from evalkit.calibration.prompts import Observed, observe
from evalkit.calibration.wiring import PLACES
from evalkit.circuits import mode_circuits
from evalkit.records import SampleResult

N_FAILURES = 24  # chosen: 12 to choose from and 12 held out; at least 8 are needed for a grade
N_MATCHED = 1  # shown beside a circuit, never decisive


def grade_mode(compiled: Compiled, seed: int, permuted: bool = False) -> ModeFigures:
    """The grade of the mode circuit that an audit of this model would print."""
    observed = observe(compiled, N_FAILURES, 1.0, seed + 1, permuted=permuted)
    half = len(observed.cases) // 2
    mode = ModeInput(
        name=f"{compiled.wiring.name}:mode",
        probe=observed.probe,
        discovery=observed.cases[:half],
        held_out=observed.cases[half:],
        n_matched=N_MATCHED,
        sizes=SIZES,
    )
    ledger = measure_mode(
        compiled.model,
        mode,
        observed.prompts,
        Coders("none", None, compiled.saes),
        controls(observed),
        SPEC,
        seed,
    )
    [circuit] = mode_circuits(results_of(observed), ledger, {})
    causal = _causal(compiled)
    return ModeFigures(
        variant=compiled.wiring.name,
        seed=seed,
        grade=circuit.grade,
        note=" ".join(circuit.notes),
        n_held_out=circuit.necessity.n if circuit.necessity else 0,
        n_flipped=circuit.necessity.n_flipped if circuit.necessity else 0,
        size=len(circuit.nodes),
        n_causal=sum((n.hook, n.feature) in causal for n in circuit.nodes),
    )


def results_of(observed: Observed) -> list[SampleResult]:
    """Each sample with its outcome, as far as circuits need it."""
    return [
        SampleResult(
            id=s.id, probe=s.probe, failure_mode=s.failure_mode, context=s.context,
            outcome=observed.outcomes[s.id], margin_nats=None, attribution=None,
        )
        for s in observed.samples.values()
    ]  # fmt: skip


def _causal(compiled: Compiled) -> set[tuple[str, int]]:
    """(hook, feature) of everything that causes the failure."""
    causal = set()
    for cause in compiled.wiring.causes:
        hook, name = PLACES[cause.place]
        causal.add((hook, compiled.features[name.format(cause.word)]))
    return causal | {("layers.0", f) for f in weak_features(compiled)}
