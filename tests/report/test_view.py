import hashlib

import pytest
import synthetic
from synthetic import Run

from evalkit import records as r
from evalkit.report import build_view
from evalkit.report.findings import fate
from evalkit.report.view import ReportView


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.fixture(scope="module")
def view(run: Run) -> ReportView:
    return build_view(run.results, run.plan, gate=run.gate)


def test_the_random_samples_are_the_counted_ones_with_the_smallest_seeded_hash(
    run: Run, view: ReportView
) -> None:
    counted = [s.id for s in run.results.samples if s.counted]
    ranked = sorted(counted, key=lambda i: hashlib.sha256(f"{run.results.run.seed}:{i}".encode()).hexdigest())
    assert [card.id for card in view.results.random] == ranked[:5]


def test_a_failure_says_which_of_its_nodes_stand_in_for_each_other(run: Run) -> None:
    sample = next(s for s in run.results.samples if s.attribution and len(s.attribution.nodes) > 1)
    assert sample.attribution is not None
    first, second, *rest = sample.attribution.nodes
    nodes = (
        first.model_copy(update={"redundant_with": (second.id,), "joint_nats": 4.8}),
        second.model_copy(update={"redundant_with": (first.id,), "joint_nats": 4.8}),
        *rest,
    )
    changed = sample.model_copy(
        update={"attribution": sample.attribution.model_copy(update={"nodes": nodes}), "margin_nats": 99.0}
    )
    results = run.results.model_copy(
        update={"samples": tuple(changed if s.id == sample.id else s for s in run.results.samples)}
    )
    leads = [f.lead for mode in build_view(results, run.plan).causes.modes for f in mode.failures]
    [lead] = [x for x in leads if "stand in for each other" in x]
    assert lead.count("at position") == 2
    assert "+4.80 nats" in plain(lead)


def test_another_seed_draws_other_samples(run: Run, view: ReportView) -> None:
    other = run.results.model_copy(update={"run": run.results.run.model_copy(update={"seed": 8})})
    assert {c.id for c in build_view(other).results.random} != {c.id for c in view.results.random}


def test_worst_failures_come_by_margin_and_hold_no_sample_that_does_not_count(
    run: Run, view: ReportView
) -> None:
    by_id = {s.id: s for s in run.results.samples}
    for mode in view.results.modes:
        margins = [by_id[card.id].margin_nats or 0.0 for card in mode.worst]
        assert margins == sorted(margins, reverse=True)
        assert all(by_id[card.id].counted and by_id[card.id].outcome == "fail" for card in mode.worst)


def test_the_flow_of_samples_adds_up(run: Run, view: ReportView) -> None:
    for row in view.results.flow.rows:
        planned, n_run, *parts, failed = (int(cell) for cell in row[2:])
        assert planned == n_run == sum(parts)
        assert failed <= parts[-1]
    assert sum(fate(s) == "counted" for s in run.results.samples) == sum(
        int(row[9]) for row in view.results.flow.rows
    )


def test_the_cover_says_that_identity_with_upstream_is_not_verified(run: Run, view: ReportView) -> None:
    assert any("identity with upstream not verified" in w for w in view.cover.warnings)
    model = run.results.model.model_copy(update={"upstream_verified": True})
    verified = build_view(run.results.model_copy(update={"model": model}))
    assert not any("upstream" in w for w in verified.cover.warnings)


def test_gates_are_judged_by_word_and_shape(view: ReportView) -> None:
    seals = {(seal.shape, seal.word) for seal, _, _ in view.cover.gates}
    assert seals <= {("✓", "PASS"), ("✕", "FAIL"), ("◇", "INCONCLUSIVE")}
    assert view.cover.overall.word == "FAIL"


def test_without_a_policy_the_cover_judges_nothing(run: Run) -> None:
    view = build_view(run.results)
    assert view.cover.overall.word == "NO GATE"
    assert {row.seal.word for row in view.summary.rows} == {"NO GATE"}
    assert len(view.summary.rows) == len(run.results.failure_modes)


def test_zero_failures_print_an_upper_bound_in_the_summary(view: ReportView) -> None:
    row = next(row for row in view.summary.rows if row.gate == "harm-rate")
    assert "at most" in plain(row.sentence)
    assert "upper bound" in row.sentence


def test_an_unmet_floor_is_said_in_words(view: ReportView) -> None:
    assert view.causes.saes is not None
    last = view.causes.saes.words[-1]
    assert not last.beaten
    assert "does not beat the frozen-random floor on explained variance (0.410 against 0.470)" in last.words
    mode = next(m for m in view.causes.modes if m.id == "strategic_deception")
    assert "At none of the 6 sizes does the SAE beat its floors" in plain(mode.curve_words)


def curve(own: int, floor: int) -> r.FailureModeResult:
    def point(kind: r.ControlKind, k: int) -> r.SizePoint:
        return r.SizePoint(
            kind=kind,
            seed=None,
            size=4,
            n=10,
            n_flipped=k,
            n_broken=0,
            rate=k / 10,
            ci_low=0.0,
            ci_high=1.0,
            collateral_kl=None,
        )

    points = (point("none", own), point("residual_coordinate", floor), point("matched_random", 0))
    results, _, _ = synthetic.build(n_items=2)
    return results.failure_modes[0].model_copy(update={"size_curve": points})


@pytest.mark.parametrize(("own", "floor", "beaten"), [(5, 4, True), (4, 4, False), (3, 4, False)])
def test_a_floor_is_beaten_only_by_more_flips_at_the_same_size(own: int, floor: int, beaten: bool) -> None:
    from evalkit.report import curves

    figure, table, words, said = curves.necessity(curve(own, floor))
    assert said is beaten
    assert figure and table
    assert ("does the SAE beat its floors" in words) is not beaten


def test_unselected_controls_are_never_decisive() -> None:
    from evalkit.report import curves

    mode = curve(5, 4)
    alone = mode.model_copy(
        update={"size_curve": tuple(p for p in mode.size_curve if p.kind != "residual_coordinate")}
    )
    assert "No floor was put through the same selection" in curves.necessity(alone)[2]


def test_failures_without_attribution_are_counted_by_reason(run: Run) -> None:
    bare = r.Attribution(method=None, no_attribution="no_sae")
    samples = tuple(
        s.model_copy(update={"attribution": bare}) if s.attribution else s for s in run.results.samples
    )
    view = build_view(
        run.results.model_copy(update={"samples": samples, "saes": (), "features": (), "circuits": ()})
    )
    mode = next(m for m in view.causes.modes if m.id == "strategic_deception")
    assert mode.coverage is not None
    reasons = dict((row[0], row[1]) for row in mode.coverage.rows)
    n = sum(s.counted and s.outcome == "fail" and s.failure_mode == "strategic_deception" for s in samples)
    assert reasons["No attribution: no_sae"] == str(n)
    assert "No SAE was given" in view.causes.lead


def test_a_plan_that_is_missing_prints_not_stated(run: Run) -> None:
    view = build_view(run.results)
    assert any(f.value == "NOT STATED" and f.kind == "missing" for f in view.plan_facts)
    assert all(p.construct == "NOT STATED" for p in view.probes)


def test_knowledge_errors_stand_apart(run: Run, view: ReportView) -> None:
    aside = [s.id for s in run.results.samples if fate(s) == "knowledge"]
    shown = [row[0] for mode in view.results.modes if mode.knowledge for row in mode.knowledge.rows]
    assert sorted(aside) == sorted(shown)
    assert aside


def test_the_digest_of_results_json_is_the_default(run: Run) -> None:
    expected = hashlib.sha256(r.json_text(run.results).encode()).hexdigest()
    assert build_view(run.results).cover.results_sha256 == expected
    assert build_view(run.results, results_sha256="a" * 64).cover.results_sha256 == "a" * 64


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (None, "detection not measured"),
        (
            r.LabelScore(judge="token_overlap", balanced_accuracy=0.7125, n_firing=20, n_other=20),
            "detection 0.71 (balanced accuracy, guessing 0.50, on 20 + 20 held-out contexts; "
            "judge token overlap)",
        ),
        (
            r.LabelScore(judge="x", balanced_accuracy=None, n_firing=1, n_other=9, not_measured="too few"),
            "detection not measured (too few)",
        ),
    ],
)
def test_no_label_is_shown_without_its_source_and_score(
    run: Run, score: r.LabelScore | None, words: str
) -> None:
    changed = {"label": "capital cities", "label_source": "neuronpedia", "label_score": score}
    features = tuple(f.model_copy(update=changed) for f in run.results.features)
    view = build_view(run.results.model_copy(update={"features": features}))
    assert all(
        f"“capital cities”, source: neuronpedia, {words}" in plain(c.label) for c in view.causes.features
    )
    short = {0.7125: "(neuronpedia; 0.71, n = 40)"}.get(score.balanced_accuracy or 0.0 if score else 0.0)
    for mode in view.causes.modes:
        figures = [f.circuit for f in mode.failures] + [c.figure for c in mode.circuits]
        for figure in figures:
            assert "“capital cities”" in figure.svg
            assert (short or "(neuronpedia; detection not measured)") in plain(figure.caption)
    for mode in view.causes.modes:
        for circuit in mode.circuits:
            assert all(words in plain(row[3]) for row in circuit.nodes.rows)


def test_a_long_table_of_claims_runs_over_the_page_instead_of_leaving_one_empty(
    run: Run, view: ReportView
) -> None:
    assert view.claims.may_split
    claim = run.results.claims[0].model_copy(update={"evidence": tuple(f"r{i}" for i in range(9))})
    changed = build_view(run.results.model_copy(update={"claims": (claim,)}))
    assert changed.claims.rows[0][-1] == "r0, r1, r2 and 6 more"
