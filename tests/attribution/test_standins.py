"""Redundant causes are named by the ordinary path, with what ablating them together really did."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from evalkit.attribution import standins
from evalkit.attribution.attribute import Attributed
from evalkit.attribution.certify import Change
from evalkit.calibration import measuring
from evalkit.calibration.compiling import compile_wiring
from evalkit.calibration.pairs import redundant_pairs
from evalkit.calibration.prompts import Observed, observe
from evalkit.calibration.truth import Key
from evalkit.calibration.wiring import CONJUNCTION, CORRELATE, MOVED, NULL, PARALLEL, REDUNDANT, Wiring


def attributed(wiring: Wiring) -> tuple[Observed, list[Attributed]]:
    observed = observe(compile_wiring(wiring, 2), 4, 0.5, 2)
    return observed, measuring._attribute(observed, observed.compiled.saes, [], 2)


def test_each_of_a_redundant_pair_names_the_other_with_their_joint_effect() -> None:
    observed, done = attributed(REDUNDANT)
    for case, a in zip(observed.cases, done, strict=True):
        keys = {n.id: Key(n.hook, n.position, n.feature) for n in a.attribution.nodes}
        named = {
            frozenset((keys[n.id], keys[o])): n.joint_nats
            for n in a.attribution.nodes
            for o in n.redundant_with
        }
        true = {
            frozenset((r.first, r.second)): r.together
            for sae in observed.compiled.saes.values()
            for r in redundant_pairs(observed.compiled.model, case, sae, 0.5)
        }
        assert len(true) == 2  # the two words, and what was moved of them
        assert named.keys() == true.keys()
        for pair, together in true.items():
            assert named[pair] == pytest.approx(together, abs=1e-3)


def test_members_are_certified_and_the_joint_ablation_stands_in_the_ledger() -> None:
    _, done = attributed(REDUNDANT)
    for a in done:
        members = [n for n in a.attribution.nodes if n.redundant_with]
        assert len(members) == 4
        assert all(n.confirmed_nats is None or abs(n.confirmed_nats) < 0.05 for n in members)
        alone = {r.nodes for r in a.interventions if r.purpose in ("certify", "joint") and r.size == 1}
        assert {(n.id,) for n in members} <= alone
        joint = [r for r in a.interventions if r.purpose == "joint" and r.size > 1]
        assert [r.size for r in joint] == [2, 2]
        assert {frozenset(r.nodes) for r in joint} == {frozenset((n.id, *n.redundant_with)) for n in members}
        assert all(r.outcome_after == "pass" and r.flipped for r in joint)


def test_a_stand_in_beyond_the_shortlist_is_named_and_joins_no_circuit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Controls have no second chance either: circuits are made of what the shortlist held."""
    monkeypatch.setattr(measuring, "SPEC", measuring.AttributionSpec(confirm=2, max_nodes=4096))
    for a in attributed(REDUNDANT)[1]:
        certified = {r.nodes[0] for r in a.interventions if r.purpose == "certify"}
        named = {n.id for n in a.attribution.nodes if n.redundant_with}
        assert len(certified) == 2 and named - certified
        switched = {i for r in a.interventions if r.purpose == "necessity" for i in r.nodes if "/f" in i}
        assert switched and switched <= certified
        assert {n.id for n in a.attribution.nodes if n.confirmed_nats is not None} == certified
        assert all(n.joint_nats is not None for n in a.attribution.nodes if n.id in named)


@pytest.mark.parametrize("wiring", [MOVED, CONJUNCTION, CORRELATE, PARALLEL, NULL], ids=lambda w: w.name)
def test_nothing_is_called_redundant_where_nothing_is(wiring: Wiring) -> None:
    for a in attributed(wiring)[1]:
        assert not any(n.redundant_with for n in a.attribution.nodes)
        assert not any(r.purpose == "joint" for r in a.interventions)


def test_a_group_without_effect_costs_one_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups at each of three hooks, and none is searched further."""
    asked: list[int] = []
    honest = standins.find_stand_ins

    def counting(failures: Sequence[standins.Searched], saes: object, effects: standins.Effects) -> object:
        def counted(changes: Sequence[Change]) -> list[float]:
            asked.append(len(changes))
            return effects(changes)

        return honest(failures, saes, counted)  # type: ignore[arg-type]

    monkeypatch.setattr("evalkit.attribution.attribute.find_stand_ins", counting)
    observed, _ = attributed(NULL)
    assert asked[1:] == [0, 0, 0]
    assert 0 < asked[0] <= 2 * 3 * len(observed.cases)


def test_three_that_stand_in_for_each_other_name_each_other() -> None:
    """A third word that suffices too: only with the other two off does each show."""
    words = ("alpha", "beta", "gamma")
    units = tuple(u._replace(reads=dict.fromkeys(words, 1.0)) for u in REDUNDANT.units)
    triple = REDUNDANT._replace(name="triple", failing=words, units=units)
    observed = observe(compile_wiring(triple, 2), 4, 0.5, 2)
    for a in measuring._attribute(observed, observed.compiled.saes, [], 2):
        sizes = [len(n.redundant_with) for n in a.attribution.nodes if n.redundant_with]
        assert sizes == [2] * 6
