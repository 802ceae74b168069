"""The map of where failures live, and the hooks it chooses, from ledger lines alone."""

from __future__ import annotations

import itertools

import pytest
import small_run

from evalkit.chain import UNCHAINED
from evalkit.located import (
    best_cell,
    choose_hooks,
    depth,
    hooks_in_use,
    located,
    place_id,
    swept_hooks,
)
from evalkit.records import (
    AttributionSpec,
    InterventionRecord,
    Located,
    LocatedCell,
    Outcome,
    Plan,
    SampleResult,
)


def line(
    sample: str, hook: str, role: str, outcome: Outcome, after: float | None = 0.5
) -> InterventionRecord:
    return InterventionRecord(
        sample=sample, circuit=None, purpose="locate", nodes=(place_id(hook, role),), baseline="contrast",
        control_kind="whole_stream", control_seed=None, selected=True, size=3, margin_before_nats=2.0,
        margin_after_nats=after, outcome_after=outcome, flipped=outcome == "pass", previous=UNCHAINED,
    )  # fmt: skip


def failing(name: str, **more: object) -> SampleResult:
    fields: dict[str, object] = {
        "id": name, "probe": "p", "failure_mode": "f", "context": "neutral", "outcome": "fail",
        "margin_nats": 2.0, "attribution": None,
    }  # fmt: skip
    return SampleResult(**(fields | more))


def plan(auto: tuple[str, ...] = (), max_hooks: int = 2) -> Plan:
    made = small_run.plan()
    suite = made.suite.model_copy(update={"attribution": AttributionSpec(max_hooks=max_hooks)})
    return made.model_copy(update={"suite": suite, "grid": {"auto_hooks": auto}})


def cell(hook: str, role: str, n_flipped: int, effect: float | None = 1.0, n: int = 8) -> LocatedCell:
    return LocatedCell(
        hook=hook, role=role, n=n, n_flipped=n_flipped, n_broken=0, rate=n_flipped / n, ci_low=0.0,
        ci_high=1.0, effect_nats=effect,
    )  # fmt: skip


def one_map(*cells: LocatedCell, probe: str = "p") -> Located:
    return Located(failure_mode="f", probe=probe, n=8, n_discovery=9, cells=cells)


# -------------------------------------------------------------------------------------------------- map


def test_a_cell_counts_flips_broken_outputs_and_the_mean_effect() -> None:
    rows = [
        line("a", "layers.2", "claim", "pass", -1.0),
        line("b", "layers.2", "claim", "fail", 1.0),
        line("c", "layers.2", "claim", "unscored", None),
        line("a", "layers.2", "final", "fail", 2.0),
        line("a", "layers.10", "claim", "fail", 2.5),
    ]
    results = [failing("a"), failing("b"), failing("c"), failing("d"), failing("e", held_out=True)]
    [found] = located(plan(), results, rows)
    assert (found.failure_mode, found.probe, found.n, found.n_discovery) == ("f", "p", 3, 4)
    assert [(c.hook, c.role) for c in found.cells] == [
        ("layers.2", "claim"), ("layers.2", "final"), ("layers.10", "claim"),
    ]  # fmt: skip
    first = found.cells[0]
    assert (first.n, first.n_flipped, first.n_broken) == (3, 1, 1)
    assert first.rate == pytest.approx(1 / 3) and first.effect_nats == pytest.approx((3.0 + 1.0) / 2)
    assert first.ci_low is not None and first.ci_high is not None and first.ci_low < 1 / 3 < first.ci_high


def test_effects_that_were_not_measured_stay_unmeasured() -> None:
    [found] = located(plan(), [failing("a")], [line("a", "layers.2", "final", "pass", None)])
    assert found.cells[0].effect_nats is None and found.cells[0].rate == 1.0


def test_lines_of_other_purposes_make_no_map() -> None:
    other = line("a", "layers.2", "claim", "pass").model_copy(update={"purpose": "necessity"})
    assert located(plan(), [failing("a")], [other]) == ()


def test_only_counted_discovery_failures_of_the_first_context_are_its_population() -> None:
    results = [
        failing("a"),
        failing("b", held_out=True),
        failing("c", counted=False),
        failing("d", context="test"),
        failing("e", outcome="pass"),
    ]
    [found] = located(plan(), results, [line("a", "layers.2", "claim", "pass")])
    assert found.n_discovery == 1


def test_the_best_cell_is_by_rate_then_effect_then_depth() -> None:
    assert best_cell([]) is None
    weak, strong = cell("layers.2", "claim", 3, 9.0), cell("layers.9", "final", 4, 0.1)
    assert best_cell([weak, strong]) == strong
    assert best_cell([cell("layers.2", "a", 4, 1.0), cell("layers.9", "b", 4, 2.0)]).hook == "layers.9"  # type: ignore[union-attr]
    assert best_cell([cell("layers.10", "a", 4), cell("layers.9", "a", 4)]).hook == "layers.9"  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------ swept hooks


def test_the_sweep_covers_the_saes_and_an_even_grid_without_near_doubles() -> None:
    hooks = swept_hooks(30, ["layers.10", "layers.16", "layers.22", "layers.27"])
    assert hooks == ("layers.2", "layers.7", "layers.10", "layers.16", "layers.22", "layers.27")
    assert swept_hooks(30, ["layers.29"]) == tuple(f"layers.{n}" for n in (2, 7, 12, 17, 22, 29))
    assert swept_hooks(8, ["encoder.layers.1", "decoder.layers.2"]) == (
        "encoder.layers.1",
        "decoder.layers.2",
    )
    assert swept_hooks(3, ["layers.1"]) == ("layers.0", "layers.1", "layers.2")


@pytest.mark.parametrize("n_layers", [1, 2, 4, 12, 30, 80])
def test_the_sweep_is_bounded_whatever_the_model(n_layers: int) -> None:
    hooks = swept_hooks(n_layers, ["layers.0"])
    assert "layers.0" in hooks and len(hooks) <= 7
    depths = [depth(h) for h in hooks]
    assert depths == sorted(set(depths)) and max(depths) < n_layers
    grid = depths[1:]
    assert all(b - a <= -(-n_layers // 6) for a, b in itertools.pairwise(grid))


# ----------------------------------------------------------------------------------------------- choice

FAMILY = ("layers.2", "layers.10", "layers.16", "layers.27")


def used(*maps: Located, family: tuple[str, ...] = FAMILY, most: int = 2) -> list[str]:
    return [c.hook for c in choose_hooks(plan(family, most), maps) if c.used]


def test_each_role_has_its_say_before_one_role_takes_every_place() -> None:
    """Failures live at the claim early and at the final position late: SAEs at one depth miss half."""
    cells = (
        cell("layers.2", "claim", 7, 4.0), cell("layers.10", "claim", 8, 4.1),
        cell("layers.16", "claim", 8, 3.9), cell("layers.27", "final", 5, 2.0),
        cell("layers.27", "claim", 1, 0.3),
    )  # fmt: skip
    assert used(one_map(*cells)) == ["layers.10", "layers.27"]
    assert used(one_map(*cells), most=1) == ["layers.10"]
    assert used(one_map(*cells), most=3) == ["layers.10", "layers.16", "layers.27"]


def test_the_choice_says_by_which_cell_and_what_the_others_had() -> None:
    cells = (cell("layers.10", "claim", 8), cell("layers.16", "claim", 6), cell("layers.16", "other", 1))
    by_hook = {c.hook: c for c in choose_hooks(plan(FAMILY, 1), [one_map(*cells)])}
    assert list(by_hook) == list(FAMILY)
    first = by_hook["layers.10"]
    assert (first.used, first.rule, first.probe, first.role) == (True, "located", "p", "claim")
    assert (first.n, first.n_flipped, first.rate) == (8, 8, 1.0)
    left = by_hook["layers.16"]
    assert (left.used, left.role, left.n_flipped) == (False, "claim", 6), "its best, not its first"
    assert (by_hook["layers.2"].used, by_hook["layers.2"].probe, by_hook["layers.2"].rate) == (
        False,
        None,
        None,
    )


def test_one_flip_of_eight_does_not_speak_before_a_strong_roles_second_hook() -> None:
    strong = [cell("layers.10", "claim", 8), cell("layers.16", "claim", 7)]
    weak = cell("layers.2", "question", 1)
    assert used(one_map(*strong, weak)) == ["layers.10", "layers.16"]
    assert used(one_map(weak)) == ["layers.10", "layers.27"], "alone it is no evidence: spread evenly"


def test_hooks_outside_the_family_are_never_chosen() -> None:
    assert used(one_map(cell("layers.7", "claim", 8), cell("layers.16", "claim", 2))) == ["layers.16"]


def test_two_probes_share_the_places() -> None:
    first = one_map(cell("layers.10", "claim", 8), cell("layers.16", "claim", 7), probe="a")
    second = one_map(cell("layers.2", "incentive", 6), cell("layers.27", "incentive", 5), probe="b")
    assert used(first, second) == ["layers.2", "layers.10"]
    assert used(second, first) == ["layers.2", "layers.10"], "whatever the order of probes"


def test_a_family_within_the_bound_is_used_whole() -> None:
    choices = choose_hooks(plan(FAMILY, 4), [one_map(cell("layers.2", "claim", 8))])
    assert all(c.used and c.rule == "all" for c in choices)


def test_where_nothing_flips_hooks_are_spread_over_depth() -> None:
    choices = choose_hooks(plan(FAMILY, 2), [one_map(cell("layers.2", "claim", 0, 3.0))])
    assert [(c.hook, c.rule) for c in choices if c.used] == [("layers.10", "even"), ("layers.27", "even")]
    assert len(used(family=FAMILY, most=3)) == 3


def test_without_families_nothing_is_chosen_and_every_sae_is_used() -> None:
    assert choose_hooks(plan(), [one_map(cell("layers.2", "claim", 8))]) == ()
    assert hooks_in_use((), ["layers.1", "layers.2"]) == ("layers.1", "layers.2")


def test_named_saes_stay_in_use_beside_a_family() -> None:
    choices = choose_hooks(plan(FAMILY, 1), [one_map(cell("layers.16", "claim", 8))])
    assert hooks_in_use(choices, ["layers.1", *FAMILY]) == ("layers.1", "layers.16")
