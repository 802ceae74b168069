"""Features that fire more often on failures: which samples are compared, and what is tested."""

from __future__ import annotations

import pytest
from test_results import attribution, off, planned, probe, record, tallied  # type: ignore[import-not-found]

from evalkit import stats
from evalkit.claims import claims_of
from evalkit.firing import Compared, Counts, compared, contradicted, more_often
from evalkit.records import Firing
from evalkit.report.firing import firing_table

TEN = Compared(tuple("abcdefghij"), tuple("klmnopqrst"), paired=False)
COUNTS = [
    Counts("layers.1/claim/f1", 10, 0, 0),
    Counts("layers.1/final/f2", 0, 10, 0),
    Counts("layers.1/final/f3", 6, 5, 0),
    *(Counts(f"layers.1/other/f{n}", 1, 0, 0) for n in range(100, 140)),
]


def found(counts: list[Counts] = COUNTS, samples: Compared = TEN) -> Firing:
    return more_often(probe(), samples, counts)


def test_fishers_exact_test_gives_the_published_value() -> None:
    assert stats.fisher(3, 4, 1, 4) == pytest.approx(0.4857, abs=1e-4)  # Fisher 1935, the tea tasting


def test_only_what_fires_more_on_failures_is_listed_and_all_tests_are_counted() -> None:
    firing = found()
    assert [t.node for t in firing.tests] == ["layers.1/claim/f1"]
    assert (firing.n_tested, firing.n_more, firing.test) == (43, 1, "fisher")
    one = firing.tests[0]
    assert one.p_value == pytest.approx(2 / 184756)  # 1 / C(20, 10), both tails
    assert one.q_value == pytest.approx(43 * 2 / 184756 / 2)  # the feature of passes has the same p


def test_many_features_that_seldom_fire_make_one_a_chance_finding() -> None:
    weak = Counts("layers.1/final/f5", 8, 2, 0)
    assert found([weak]).n_more == 1
    assert found([weak, *COUNTS[3:]]).n_more == 0


def test_one_sample_per_group_is_compared_and_twins_only_where_too_few_pass() -> None:
    pairs = [record(f"f{n}", "fail", twin=f"t{n}", group=f"g{n}") for n in range(6)]
    variant = record("f0b", "fail", twin="t0", group="g0")
    twins = [record(f"t{n}", "pass", group=f"g{n}", control=True) for n in range(6)]
    passes = [record(f"p{n}", "pass", group=f"h{n}") for n in range(5)]

    def of(records: list) -> Compared | None:  # type: ignore[type-arg]
        plan = planned(records)
        return compared(plan, tallied(records).samples, "p")

    paired = of([*pairs, variant, *twins])
    assert paired == Compared(tuple(f"f{n}" for n in range(6)), tuple(f"t{n}" for n in range(6)), True)
    both = of([*pairs, variant, *twins, *passes])
    assert both == Compared(tuple(f"f{n}" for n in range(6)), tuple(f"p{n}" for n in range(5)), False)
    assert of([*pairs[:5], *twins]) is None
    nothing = more_often(probe(), None, [])
    assert (nothing.test, nothing.n_tested) == (None, 0)
    assert "not compared" in (firing_table(nothing).note or "")


def test_pairs_count_where_only_one_of_them_fires() -> None:
    samples = Compared(tuple("abcdefgh"), tuple("ijklmnop"), paired=True)
    firing = more_often(probe(), samples, [Counts("layers.1/claim/f1", 8, 1, 1)])
    assert firing.test == "mcnemar" and firing.tests[0].p_value == pytest.approx(2 / 2**7)


def test_a_p_value_that_its_counts_do_not_give_is_found() -> None:
    firing = found()
    assert contradicted(firing) is None
    bolder = firing.tests[0].model_copy(update={"p_value": 1e-9})
    assert contradicted(firing.model_copy(update={"tests": (bolder,)})) == "layers.1/claim/f1"


def test_the_claim_is_graded_observed_only_with_a_finding_and_says_how_many_were_tested() -> None:
    (claim,), _ = claims_of((), (), (), [found()], 3.0)
    assert claim.grade == "observed" and "Of 43 features" in claim.sentence
    (claim,), _ = claims_of((), (), (), [found(COUNTS[1:])], 3.0)
    assert claim.grade == "inconclusive"
    assert "1 of 43 features tested fire" in (firing_table(found()).note or "")


def test_the_summary_says_by_how_much_a_mode_circuit_trails_or_leads() -> None:
    names = [f"d{n}" for n in range(4)] + [f"h{n}" for n in range(9)]
    records = [record(n, "fail") for n in names]
    ledger = []
    for coder, seed, flips in (("none", None, 4), ("frozen_random", 0, 6)):
        for n in range(4):
            line = off(f"d{n}", 1, False, coder, seed, circuit="f:p:mode")
            ledger.append(line.model_copy(update={"purpose": "certify", "nodes": ("layers.1/final/f1",)}))
        for n in range(9):
            line = off(f"h{n}", 1, n < flips, coder, seed, circuit="f:p:mode")
            ledger.append(line.model_copy(update={"nodes": ("layers.1/final/f1",)}))
    sample = [off(n, 1, False) for n in names]
    found = tallied(records, attributions=[attribution(n) for n in names], interventions=[*ledger, *sample])
    [note] = [n for n in found.notes if n.startswith("f:p:mode: at")]
    assert note.startswith(
        "f:p:mode: at 1 node 4 of 9 held-out failures, frozen-random SAE 6 of 9 over 1 set; "
    )
    assert any("places to look, not causes" in n for n in found.notes)
