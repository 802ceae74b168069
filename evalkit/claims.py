"""What a run states, in sentences with grades: claims, and the limits that the summary must print.

1. per failure mode: its rate; what switching off each failure's own best nodes did, beside the best floor;
2. per probe: how many features fire more often on failures (observed, nothing is intervened on);
3. per mode circuit: what the held-out half says, with its grade;
4. notes: where no floor was beaten, by how much and at which size; failures without attribution.
"""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.circuits import NEGATIVE_CONTROLS
from evalkit.records import Circuit, Claim, FailureModeResult, Firing, Grade, SampleResult, SizePoint

_CONTROL_NAMES = {
    "frozen_random": "frozen-random SAE",
    "residual_coordinate": "residual coordinates",
    "dense_neuron": "dense neurons",
    "random_direction": "random directions",
    "matched_random": "unselected matched features",
}


def beats_floors(curve: Sequence[SizePoint]) -> tuple[SizePoint, SizePoint] | None:
    """The audited point that leads its best floor by most flips at one size, and that floor.

    A floor is the best single control (each frozen-random seed counts for itself). None if no size
    shows a lead. A lead in counts is not yet a significant one: sentences must give both figures.
    """
    best: tuple[SizePoint, SizePoint] | None = None
    for own in (p for p in curve if p.kind == "none"):
        floors = [p for p in curve if p.kind != "none" and p.size == own.size]
        if not floors:
            continue
        floor = max(floors, key=lambda p: p.n_flipped)
        lead = own.n_flipped - floor.n_flipped
        if lead > 0 and (best is None or lead > best[0].n_flipped - best[1].n_flipped):
            best = (own, floor)
    return best


def claims_of(
    modes: Sequence[FailureModeResult],
    results: Sequence[SampleResult],
    circuits: Sequence[Circuit],
    firing: Sequence[Firing],
    grading: float,
) -> tuple[tuple[Claim, ...], tuple[str, ...]]:
    """Claims, and the notes of the summary.

    Runs planned with `grading` below 3 called a sample circuit that flipped nothing `observed`.
    """
    claims, notes = [], []
    no_flip: Grade = "inconclusive" if grading >= 3 else "observed"
    for mode in modes:
        claims.append(_rate_claim(mode))
        if mode.not_interpretable:
            notes.append(f"{mode.id}: the rate is not interpretable: {mode.not_interpretable}.")
        if not mode.size_curve:
            continue
        lead = beats_floors(mode.size_curve)
        last = max((p for p in mode.size_curve if p.kind == "none"), key=lambda p: p.size, default=None)
        if last is None:
            continue
        floors = [p for p in mode.size_curve if p.kind != "none" and p.size == last.size]
        floor = max(floors, key=lambda p: p.n_flipped) if floors else None
        sentence = (
            f"Switching off each failure's own best {last.size} features at once changed "
            f"{last.n_flipped} of {last.n} attributed failures of {mode.id} to passes"
        )
        if floor is not None:
            sentence += (
                f"; the best control put through the same selection ({_control_name(floor)}) changed "
                f"{floor.n_flipped} of {floor.n}"
            )
        claims.append(
            Claim(
                id=f"{mode.id}:sample-necessity",
                type="inference",
                sentence=sentence + ".",
                grade="attributed" if last.n_flipped else no_flip,
                evidence=mode.circuits,
            )
        )
        if lead is None:
            notes.append(
                f"{mode.id}: no size of sample circuit beat its same-selection floors{_behind(last, floor)}; "
                "the features named here are not shown to be special to these SAEs."
            )
        else:
            own, best = lead
            notes.append(
                f"{mode.id}: sample circuits lead their best same-selection floor by at most "
                f"{own.n_flipped - best.n_flipped} of {own.n} failures (at {own.size} nodes: {own.n_flipped} "
                f"against {best.n_flipped}, {_control_name(best)}); nodes were chosen on the same failures."
            )
    shared = [c for c in circuits if c.level == "mode"]
    claims += [_firing_claim(f) for f in firing if f.test is not None]
    claims += [_mode_claim(c) for c in shared]
    if any(m.size_curve for m in modes) and not any(c.grade in ("confirmed", "robust") for c in shared):
        notes.append(
            "No circuit of this audit is graded above 'attributed': switching off the features named here "
            "changes single failures, but no set of them is shown to do more for a failure mode than random "
            "features, coordinates or neurons chosen in the same way. They are places to look, not causes."
        )
        notes += [_shortfall(c) for c in shared if c.necessity is not None and c.controls]
    reasons = [
        r.attribution.no_attribution for r in results if r.attribution and r.attribution.no_attribution
    ]
    for reason in sorted(set(reasons)):
        notes.append(f"{reasons.count(reason)} failures carry no attribution: {reason}.")
    return tuple(claims), tuple(notes)


def _behind(own: SizePoint, floor: SizePoint | None) -> str:
    """By how much the largest sample circuits trail their best floor, and at which size."""
    if floor is None:
        return ""
    gap = floor.n_flipped - own.n_flipped
    return (
        f" (at size {own.size} they changed {own.n_flipped} of {own.n} failures, the best floor, "
        f"{_control_name(floor)}, {f'{gap} more' if gap else 'as many'})"
    )


def _shortfall(circuit: Circuit) -> str:
    """By how much one mode circuit trails or leads the hardest kind of control, and at which size."""
    assert circuit.necessity is not None
    negative = [c for c in circuit.controls if c.kind in NEGATIVE_CONTROLS and c.rate is not None]
    words = (
        f"{circuit.id}: at {circuit.size} {'node' if circuit.size == 1 else 'nodes'} "
        f"{circuit.necessity.n_flipped} of "
        f"{circuit.necessity.n} held-out failures"
    )
    if negative:
        best = max(negative, key=lambda c: c.rate or 0.0)
        words += (
            f", {_CONTROL_NAMES.get(best.kind, best.kind)} {best.n_flipped} of {best.n} over "
            f"{best.n_sets} {'set' if best.n_sets == 1 else 'sets'}"
        )
    if circuit.lead_low is not None and circuit.lead_high is not None:
        words += (
            "; its lead over the hardest set lies between "
            f"{circuit.lead_low:+.0%} and {circuit.lead_high:+.0%}"
        )
    return words + "."


def _firing_claim(firing: Firing) -> Claim:
    """How many features fire more often on failures, of how many that were tested."""
    name = "Fisher's exact test" if firing.test == "fisher" else "McNemar's test on pairs"
    against = "passing samples" if firing.test == "fisher" else "passing twins"
    sentence = (
        f"Of {firing.n_tested} features (by role) that fire, {firing.n_more} fire more often on "
        f"{firing.n_failing} failures of {firing.probe} than on {firing.n_passing} {against} ({name}, "
        "Benjamini–Hochberg at 5 % over all of them); nothing was intervened on."
    )
    return Claim(
        id=f"{firing.failure_mode}:{firing.probe}:firing",
        type="observation",
        sentence=sentence,
        grade="observed" if firing.n_more else "inconclusive",
        evidence=(firing.failure_mode,),
    )


def _mode_claim(circuit: Circuit) -> Claim:
    """What the held-out half says of one mode circuit."""
    kept = circuit.necessity
    if kept is None or not circuit.nodes:
        sentence = f"No shared circuit of {circuit.failure_mode} was found: {circuit.notes[0]}"
    else:
        sentence = (
            f"Switching off {len(circuit.nodes)} features shared by failures of {circuit.failure_mode} "
            f"changed {kept.n_flipped} of {kept.n} held-out failures to passes"
        )
        for control in circuit.controls:
            name = _CONTROL_NAMES.get(control.kind, control.kind)
            sentence += f"; {name}: {control.n_flipped} of {control.n} over {control.n_sets} sets"
        sentence += f". Grade {circuit.grade}: {'; '.join(circuit.notes)}"
    return Claim(
        id=circuit.id, type="inference", sentence=sentence + ".", grade=circuit.grade, evidence=(circuit.id,)
    )


def _rate_claim(mode: FailureModeResult) -> Claim:
    if mode.rate is None or mode.ci_low is None or mode.ci_high is None:
        sentence = f"No rate is stated for {mode.id}: no sample was valid and scored."
        return Claim(
            id=f"{mode.id}:rate", type="observation", sentence=sentence, grade="inconclusive", evidence=()
        )
    sentence = (
        f"The model showed {mode.id} on {mode.n_failed} of {mode.n} samples "
        f"({mode.rate:.1%}; 95 % interval {mode.ci_low:.1%} to {mode.ci_high:.1%}, Wilson)"
    )
    if mode.n_knowledge_errors:
        sentence += (
            f"; {mode.n_knowledge_errors} further failures are errors of knowledge and are not counted"
        )
    if mode.n_not_stated:
        sentence += f"; on {mode.n_not_stated} more it did not state otherwise first, so they are not counted"
    if mode.not_interpretable:
        sentence += f"; the rate is not interpretable: {mode.not_interpretable}"
    return Claim(
        id=f"{mode.id}:rate",
        type="observation",
        sentence=sentence + ".",
        grade="observed",
        evidence=(mode.id,),
    )


def _control_name(point: SizePoint) -> str:
    name = _CONTROL_NAMES.get(point.kind, point.kind)
    return f"{name}, seed {point.seed}" if point.seed is not None else name
