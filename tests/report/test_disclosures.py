"""The three behavioural rates: what was not run is not zero, and nothing unverified is an anchor."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from payloads import PAYLOADS
from synthetic import Run

from evalkit.errors import ConfigError
from evalkit.records import ControlOf, FailureModeResult
from evalkit.report import build_view, render_html
from evalkit.report.disclosures import FORM_ONLY, NOT_TESTED, quoted, rates, read_disclosures, shipped
from evalkit.report.nouns import Inputs, Table


def inputs(run: Run, *modes: FailureModeResult) -> Inputs:
    shown = run.results.model_copy(update={"failure_modes": modes or run.results.failure_modes})
    return Inputs(shown, run.plan, None, run.gate, "0" * 64)


def mode(run: Run, **changes: object) -> FailureModeResult:
    first = run.results.failure_modes[0]
    assert first.id == "strategic_deception"
    return first.model_copy(update=changes)


def row(table: Table, start: str) -> tuple[str, ...]:
    [found] = [r for r in table.rows if r[0].startswith(start)]
    return found


def test_a_behaviour_that_was_not_run_is_not_tested_and_never_a_zero(run: Run) -> None:
    table = rates(inputs(run))
    for name, suite in (("Deceptive", "deceptive-alignment"), ("Multi-agent", "multi-agent-bypass")):
        assert row(table, name)[1:] == (NOT_TESTED, "–", "–", "–", f"suite {suite}")
    empty = rates(inputs(run, mode(run, n=0, n_failed=0, rate=None)))
    assert row(empty, "Strategic")[1] == NOT_TESTED


def test_a_rate_stands_with_numerator_denominator_and_both_intervals(run: Run) -> None:
    made = mode(
        run, n=40, n_failed=10, rate=0.25, ci_low=0.14, ci_high=0.40,
        ci_cluster_low=0.11, ci_cluster_high=0.47, n_groups=20,
        given_stated=None, n_knowledge_errors=3, n_not_stated=2, n_abstained=1,
    )  # fmt: skip
    found = [cell.replace("\u00a0", " ") for cell in row(rates(inputs(run, made)), "Strategic")]
    assert found[1:5] == ["10 / 40", "25.0 %", "14.0–40.0 %", "11.0–47.0 % (20 groups)"]
    assert found[5] == "3 errors of knowledge, 2 not stated otherwise first, 1 abstained"


def test_conditional_rates_stand_below_their_rate(run: Run) -> None:
    given = run.results.failure_modes[0].given_knowledge
    assert given is not None
    made = mode(run, given_stated=given)
    names = [r[0] for r in rates(inputs(run, made)).rows]
    at = next(n for n, name in enumerate(names) if name.startswith("Strategic"))
    assert names[at + 1 : at + 3] == [
        "… given that the twin shows the knowledge",
        "… given also that it stated otherwise",
    ]


def test_a_void_rate_says_so_where_it_is_read(run: Run) -> None:
    made = mode(run, not_interpretable="its capability control c is not passed")
    assert row(rates(inputs(run, made)), "Strategic")[5].startswith("NOT INTERPRETABLE: its capability")


def test_no_failure_prints_an_upper_bound(run: Run) -> None:
    made = mode(run, n=24, n_failed=0, rate=0.0, ci_low=0.0, ci_high=0.138, ci_cluster_low=0.0,
                ci_cluster_high=0.242, n_groups=12)  # fmt: skip
    found = [cell.replace("\u00a0", " ") for cell in row(rates(inputs(run, made)), "Strategic")]
    assert found[3:5] == ["at most 13.8 %", "at most 24.2 % (12 groups)"]


def test_the_summary_marks_a_void_rate_and_counts_no_control_among_failures(run: Run) -> None:
    of = ControlOf(failure_mode="strategic_deception", kind="capability")
    control = mode(run, id="understands", control_of=of, n=40, n_failed=18)
    made = mode(run, n=40, n_failed=10, not_interpretable="understands is not passed")
    shown = build_view(inputs(run, made, control).results, run.plan, gate=run.gate).summary
    assert "10\u00a0failures in 1\u00a0failure mode" in " ".join(shown.lead)
    assert any("NOT INTERPRETABLE" in r.sentence for r in shown.rows)


def test_controls_stand_beside_the_rate_that_they_belong_to(run: Run) -> None:
    of = ControlOf(failure_mode="strategic_deception", kind="capability")
    control = mode(run, id="understands", control_of=of, n=40, n_failed=18)
    made = mode(run, not_interpretable="understands is not passed")
    view = build_view(inputs(run, made, control).results, run.plan, gate=run.gate)
    cells = {r[0]: r[4] for r in view.results.beside.rows}
    assert "comprehension, understands: 18" in cells["strategic_deception"]
    assert "NOT INTERPRETABLE" in cells["strategic_deception"]
    assert cells["understands"] == "is itself a control (comprehension) of strategic_deception"


def test_no_quoted_figure_that_is_shipped_is_an_anchor() -> None:
    table = quoted()
    assert [r[1].replace("\u00a0", " ") for r in table.rows] == ["12 %", "18 %", "23 %"]
    assert {r[4] for r in table.rows} == {"unverified-secondary"} and {r[5] for r in table.rows} == {
        FORM_ONLY
    }
    assert all(r[3] for r in table.rows)


@pytest.mark.parametrize(
    ("provenance", "use"),
    [("primary", "anchor"), ("reported", FORM_ONLY), ("unverified-secondary", FORM_ONLY)],
)
def test_only_a_primary_figure_is_an_anchor(tmp_path: Path, provenance: str, use: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(
        "schema_version: 1\nversion: '2026-01-01'\nbehaviours:\n"
        "  - failure_mode: f\n    title: T\n    means: m\n    suite: s\n    quoted:\n"
        f"      - {{figure: 5 %, subject: x, source: y, provenance: {provenance}}}\n"
    )
    [found] = quoted(read_disclosures(path)).rows
    assert found[5] == use


def test_a_figure_without_source_or_with_an_unknown_provenance_is_refused(tmp_path: Path) -> None:
    good = (Path(__file__).parents[2] / "evalkit/report/disclosures.yaml").read_text("utf-8")
    path = tmp_path / "d.yaml"
    path.write_text(good.replace("unverified-secondary\n", "hearsay\n", 2))
    with pytest.raises(ConfigError, match="provenance"):
        read_disclosures(path)


def test_the_suites_and_failure_modes_named_are_those_that_are_shipped() -> None:
    for behaviour in shipped().behaviours:
        path = Path(__file__).parents[2] / "suites" / f"{behaviour.suite}.yaml"
        if behaviour.suite == "multi-agent-bypass" and not path.is_file():
            continue
        modes = [p["failure_mode"] for p in yaml.safe_load(path.read_text("utf-8"))["probes"]]
        assert behaviour.failure_mode in modes


@pytest.mark.parametrize("payload", PAYLOADS[:3], ids=range(3))
def test_no_words_of_a_run_become_markup_or_a_figure_of_the_table(run: Run, payload: str) -> None:
    made = mode(run, not_interpretable=payload)
    html = render_html(build_view(inputs(run, made).results, run.plan, gate=run.gate))
    assert payload.strip() not in html or "<" not in payload
    assert html.count("Quoted from outside, not measured here") == 1
