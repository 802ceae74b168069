"""Halves follow from the plan alone, and keep groups together."""

from __future__ import annotations

from test_results import planned, probe, record  # type: ignore[import-not-found]

from evalkit.records import Attribution, AttributionRecord, SampleResult
from evalkit.results import tally
from evalkit.splits import DISCOVERY, Split, halves, has_variants, held_out_groups

DONE = Attribution(method="auto", no_attribution=None)


def audited(n: int, variants: int = 1) -> tuple[object, tuple[SampleResult, ...]]:
    """`n` groups of failing variants, each with a passing twin, of which the odd groups' failed."""
    records = []
    for g in range(n):
        for v in range(variants):
            records.append(record(f"a{g}-{v}", "fail", twin=f"t{g}", group=f"g{g}"))
        records.append(record(f"t{g}", "fail" if g % 2 else "pass", group=f"g{g}", control=True))
    plan = planned(records, [probe(knowledge=False)])
    plan = plan.model_copy(update={"held_out_groups": held_out_groups(plan.samples, 0.5, 0), "seed": 0})
    attributions = [
        AttributionRecord(sample=r.sample.id, attribution=DONE, previous="0" * 64)
        for r in records
        if not r.sample.control
    ]
    return plan, tally(plan, records, attributions, ()).samples


def test_split_0_is_the_headlines_and_others_differ_from_it() -> None:
    plan, results = audited(20)
    first = halves(plan, results, "p", Split(0, "all"))
    groups = {r.id: r.group for r in results}
    assert {groups[i] for i in first.held_out} == set(plan.held_out_groups)
    others = [halves(plan, results, "p", Split(n, "all")) for n in (1, 2)]
    assert len({first.held_out, *(o.held_out for o in others)}) == 3
    assert all(halves(plan, results, "p", Split(n, "all")) == o for n, o in zip((1, 2), others, strict=True))


def test_no_group_stands_in_both_halves_and_discovery_is_bounded() -> None:
    plan, results = audited(40, variants=2)
    groups = {r.id: r.group for r in results}
    for split in (Split(0, "all"), Split(3, "all"), Split(3, "one")):
        half = halves(plan, results, "p", split)
        assert not {groups[i] for i in half.discovery} & {groups[i] for i in half.held_out}
        assert len(half.discovery) == DISCOVERY


def test_one_variant_of_each_group_is_kept_where_asked() -> None:
    plan, results = audited(10, variants=3)
    groups = {r.id: r.group for r in results}
    everything, one = (halves(plan, results, "p", Split(0, p)) for p in ("all", "one"))
    assert len(everything.held_out) == 15 and len(one.held_out) == 5
    assert len({groups[i] for i in one.held_out}) == 5
    assert set(one.held_out) < set(everything.held_out)


def test_a_twin_that_failed_is_no_twin() -> None:
    plan, results = audited(12)
    half = halves(plan, results, "p", Split(0, "all"))
    assert {t for t in half.twins.values()} == {
        f"t{i[1:-2]}" for i in half.discovery if int(i[1:-2]) % 2 == 0
    }


def test_variants_are_samples_of_a_group_besides_twins_and_controls() -> None:
    assert not has_variants(audited(3)[0].samples)  # type: ignore[attr-defined]
    assert has_variants(audited(3, variants=2)[0].samples)  # type: ignore[attr-defined]
