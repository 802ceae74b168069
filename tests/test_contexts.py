"""Contexts compared: what is called a gap, and what its format control, its floors and its n make of it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
from tiny_audit import CLAIMS, command, lines_of, material, results_of, rich, write_suite

from evalkit import stats
from evalkit.attribution.awareness import select
from evalkit.attribution.telling import Table, best_threshold, out_of_fold, text_scores
from evalkit.chain import UNCHAINED
from evalkit.context_circuits import mean_effects, overlaps, top
from evalkit.context_features import CONTROL, CUE, inhibitions, shifts
from evalkit.context_items import by_framing
from evalkit.contexts import compare_contexts
from evalkit.records import (
    Attribution,
    ChatMessage,
    ContextGap,
    Contexts,
    FramingSpec,
    ModelRef,
    Node,
    Plan,
    ProbeSpec,
    Reading,
    Sample,
    SampleResult,
    Suite,
)
from evalkit.verify import verify_run

DIGEST = "ab" * 32


def sample(name: str, context: str = "neutral", control: bool = False, wording: int = 0) -> Sample:
    end = "" if context == "neutral" else f"@{context}" + (".control" if control else "")
    return Sample(
        id=name + end, probe="p", failure_mode="f", group=name, context=context,  # type: ignore[arg-type]
        rung=None if context == "neutral" else "statement", wording=wording, format_control=control,
        control=control, messages=(ChatMessage(role="user", content=name + end),), fields={"id": name},
    )  # fmt: skip


def framings(name: str, wording: int = 0) -> list[Sample]:
    return [
        sample(name, wording=wording),
        *(sample(name, c, k, wording) for c in ("test", "deployment") for k in (False, True)),
    ]


def planned(samples: list[Sample], controls: bool = True, held_out: tuple[str, ...] = ()) -> Plan:
    spec = ProbeSpec(id="p", failure_mode="f", kind="choice", samples=(), prompt="x")
    suite = Suite(
        schema_version=1, id="s", version="1.0.0", model=ModelRef(ref="m"), probes=(spec,),
        contexts=("neutral", "test", "deployment"),
        framing=FramingSpec(rungs=("statement",), controls=controls),
    )  # fmt: skip
    return Plan(
        suite=suite, suite_sha256=DIGEST, suite_files=(), samples=tuple(samples), batches=(), limit=None,
        seed=0, model_ref="m", model_sha256=DIGEST, sae_sha256={}, dtype="float32", held_out_groups=held_out,
        thresholds={}, grid={}, policy=None, n_earlier_runs=0,
    )  # fmt: skip


def compared(fails: dict[str, int], n: int = 20, controls: bool = True) -> Contexts:
    """The first so many items fail in each framing: `fails` counts them by the end of the id."""
    samples = [s for k in range(n) for s in framings(f"x{k}") if controls or not s.format_control]
    failed = {
        s.id: int(s.group[1:]) < fails.get(s.id.removeprefix(s.group), 0) for s in samples
    }  # fmt: skip
    found = compare_contexts(planned(samples, controls), [], failed)
    assert found is not None
    return found


def gap(found: Contexts, first: str = "neutral", second: str = CUE) -> ContextGap:
    return next(g for g in found.gaps if (g.first, g.second) == (first, second))


# -------------------------------------------------------------------------------------------------- gaps


def test_a_gap_that_the_format_control_does_not_show_is_one_of_context() -> None:
    found = compared({"@test": 12})
    g = gap(found)
    assert g.finding == "beyond_format"
    assert (g.gap.n, g.gap.n_only_first, g.gap.n_only_second) == (20, 0, 12)
    assert g.gap.difference == 0.6 and g.gap.p_value == pytest.approx(2 / 2**12)
    assert g.control is not None and g.control.p_value == 1.0
    assert g.beyond == 0.6 and g.beyond_low is not None and 0 < g.beyond_low < 0.6
    assert gap(found, "deployment/statement").finding == "beyond_format"
    assert gap(found, second="deployment/statement").finding == "not_shown"


def test_a_gap_that_the_format_control_shows_too_is_none_of_context() -> None:
    assert gap(compared({"@test": 12, "@test.control": 12})).finding == "format_too"
    half = gap(compared({"@test": 16, "@test.control": 7}))
    assert half.gap.difference == 0.8 and half.beyond == 0.45 and half.finding == "format_too"


def test_a_control_that_moves_by_chance_does_not_hide_a_gap_but_bounds_it() -> None:
    some = gap(compared({"@test": 18, "@test.control": 2}))
    assert some.control is not None and some.control.p_value == 0.5
    assert some.finding == "beyond_format" and some.beyond == 0.8


def test_without_controls_no_gap_is_told_from_its_format() -> None:
    found = compared({"@test": 12}, controls=False)
    assert gap(found).finding == "no_control" and gap(found).control is None and gap(found).beyond is None
    assert "Format controls were not run" in found.notes[0]


def test_few_discordant_items_show_nothing_and_the_exact_interval_holds_zero() -> None:
    g = gap(compared({"@test": 4}))
    assert g.finding == "not_shown" and g.p_adjusted > 0.05
    assert g.gap.exact_low is not None and g.gap.exact_low < 0 < (g.gap.exact_high or 0)


def test_p_values_are_adjusted_over_every_gap_of_the_run() -> None:
    found = compared({"@test": 6})
    raw = [g.gap.p_value for g in found.gaps]
    assert [g.p_adjusted for g in found.gaps] == list(stats.holm(raw)) and len(raw) == 3
    assert gap(found).gap.p_value < 0.05 < gap(found).p_adjusted
    assert gap(found).finding == "not_shown"


def test_a_gap_counts_in_either_direction() -> None:
    g = gap(compared({"": 12, "@test.control": 12, "@deployment": 12, "@deployment.control": 12}))
    assert g.gap.difference == -0.6 and g.finding == "beyond_format"


def test_unscored_items_leave_the_pairs_and_rates_name_every_framing() -> None:
    samples = [s for k in range(10) for s in framings(f"x{k}")]
    failed = {s.id: False for s in samples if s.id != "x0@test"}
    found = compare_contexts(planned(samples), [], failed)
    assert found is not None and gap(found).gap.n == 9
    rates = {r.framing: (r.n, r.n_unscored) for r in found.rates}
    assert rates[CUE] == (9, 1) and rates["neutral"] == (10, 0) and len(rates) == 5


def test_one_context_compares_nothing() -> None:
    samples = [sample("x")]
    plan = planned(samples)
    alone = plan.model_copy(update={"suite": plan.suite.model_copy(update={"contexts": ("neutral",)})})
    assert compare_contexts(alone, [], {"x": True}) is None


@pytest.mark.parametrize(("first", "second", "n"), [(0, 0, 10), (3, 0, 10), (1, 8, 9), (0, 5, 5)])
def test_the_exact_interval_holds_the_estimate_and_is_wider_than_the_approximate_one(
    first: int, second: int, n: int
) -> None:
    exact, near = stats.paired_exact(first, second, n), stats.paired(first, second, n)
    assert exact is not None and near is not None
    assert exact.estimate == near.difference.estimate == (second - first) / n
    assert -1 <= exact.low <= exact.estimate <= exact.high <= 1
    assert exact.high - exact.low >= near.difference.high - near.difference.low
    assert stats.paired_exact(0, 0, 0) is None


def test_auroc_counts_wins_and_a_perfect_score_of_few_groups_is_no_certainty() -> None:
    low = [(f"g{n}", float(n)) for n in range(5)]
    found = stats.auroc(low, [(g, v + 1.5) for g, v in low])
    wins = sum((a + 1.5 > b) + 0.5 * (a + 1.5 == b) for a in range(5) for b in range(5)) / 25
    assert found is not None and found.estimate == pytest.approx(wins)
    perfect = stats.auroc(low, [(g, v + 9) for g, v in low])
    assert perfect is not None and perfect.estimate == 1.0 and perfect.low < 0.7
    assert stats.auroc(low, []) is None


# ------------------------------------------------------------------------------------------ told and chosen


def test_folds_share_no_wording_so_that_words_alone_cannot_generalise() -> None:
    texts = [f"{w} item {k}" for k in range(12) for w in (("exam", "plain") if k % 2 else ("quiz", "stone"))]
    labels = [n % 2 == 0 for n in range(24)]
    by_wording, mixed = [n // 2 % 2 for n in range(24)], [n // 4 % 2 for n in range(24)]
    honest = text_scores(texts, labels, by_wording, words=True)
    leaky = text_scores(texts, labels, mixed, words=True)
    assert honest is not None and leaky is not None
    assert len(set(zip(labels, [round(s, 3) for s in honest], strict=True))) > 0
    accuracy = [sum((s > 0) == y for s, y in zip(f, labels, strict=True)) / 24 for f in (honest, leaky)]
    assert accuracy[0] < 0.7 and accuracy[1] == 1.0


def test_a_fold_that_holds_all_of_a_class_gives_no_score() -> None:
    import numpy as np

    assert out_of_fold(np.eye(4), [True, True, False, False], [0, 0, 1, 1]) is None


def test_the_threshold_is_the_middle_of_the_best_places() -> None:
    assert best_threshold([0.0, 1.0, 2.0, 3.0], [False, False, True, True]) == 1.5


def test_selection_reads_the_discovery_half_only_and_wants_a_change_beyond_format() -> None:
    import numpy as np

    samples = [s for k in range(16) for s in framings(f"x{k}")]
    held_out = frozenset(f"x{k}" for k in range(8))
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.05, (len(samples), 4)) + 1
    for n, s in enumerate(samples):
        cued = s.context == "test" and not s.format_control
        values[n, 0] += 2 * (cued and s.group not in held_out)
        values[n, 1] += 5 * (s.context == "test")  # the form, cue and control alike
        values[n, 2] += 9 * (cued and s.group in held_out)  # seen on the held-out half alone
    table = Table(tuple(samples), ("h/f0", "h/f1", "h/f2", "h/f3"), values)
    assert select(table, held_out, CONTROL, CUE, 8)[0] == "h/f0"
    assert not {"h/f2"} & set(select(table, held_out, CONTROL, CUE, 1))
    assert select(table, held_out, "neutral", CUE, 1) == ["h/f1"], "without the control, form is taken"
    assert select(table, frozenset(s.group for s in samples), CONTROL, CUE, 8) == []


# ---------------------------------------------------------------------------------------- shifts, inhibition


def reading(what: str, **fields: object) -> Reading:
    return Reading(what=what, previous=UNCHAINED, **fields)  # type: ignore[arg-type]


def test_a_shift_states_what_the_format_alone_does_to_the_feature() -> None:
    samples = [s for k in range(10) for s in framings(f"x{k}")]
    level = {"": 0.0, "@test": 3.0, "@test.control": 1.0}
    values = {
        s.id: level[s.id.removeprefix(s.group)] + int(s.group[1:]) / 100
        for s in samples
        if s.context != "deployment"
    }
    effects = {i: v for i, v in values.items() if i.endswith(("@test", ".control"))}
    [row] = shifts(
        [
            reading("activation", by="sae", first=CONTROL, second=CUE, features=("h/f1",), values=values),
            reading("effect", by="sae", first=CONTROL, second=CUE, features=("h/f1",), values=effects),
        ],
        {s.id: s for s in samples},
    )
    assert row.n == 10 and row.format_shift == pytest.approx(1.0)
    assert row.mean_second is not None and row.mean_first is not None
    assert row.mean_second - row.mean_first == pytest.approx(2.0)
    assert row.p_value == row.q_value < 0.01
    assert row.n_effect == 10 and row.effect_q_value == row.effect_p_value


def inhibited(floor_passes: int, own_passes: int = 10, *, kl: float = 0.1, floors: int = 5) -> str:
    """Ten of twenty held-out items fail under the cue alone; so many of them pass with features down."""
    samples = [s for k in range(20) for s in framings(f"x{k}")]
    failed = {s.id: s.id.endswith("@test") and int(s.group[1:]) < 10 for s in samples}
    items = by_framing(samples, "f", failed)

    def arm(by: str, seed: int | None, rule: str, n_passing: int, collateral: float) -> list[Reading]:
        outcomes = {
            s.id: "fail" if failed[s.id] and int(s.group[1:]) >= n_passing else "pass"
            for s in samples
            if s.context == "test"
        }
        shared = {"by": by, "seed": seed, "rule": rule, "features": ("h/f1",), "strength": 1.0}
        return [
            reading("inhibited", first=CONTROL, second=CUE, outcomes=outcomes, **shared),
            reading("collateral", half="discovery", values={"x0": collateral}, **shared),
        ]

    readings = arm("sae", None, "removed", own_passes, 0.1)
    for seed in range(floors):
        for rule in ("removed", "equal_collateral"):
            readings += arm("frozen_random", seed, rule, floor_passes, kl)
    found = inhibitions("f", items, readings, frozenset(s.group for s in samples))
    assert found is not None and found.n == 20 and found.gap == 0.5
    assert found.arms[0].closed == own_passes / 20
    return found.finding


def test_a_gap_closes_only_where_every_floor_is_left_behind() -> None:
    assert inhibited(0) == "closes"
    assert inhibited(9) == "not_beyond_floors"
    assert inhibited(0, own_passes=0) == "not_beyond_floors"


def test_floors_that_are_too_few_or_not_matched_decide_nothing() -> None:
    assert inhibited(0, floors=4) == "not_measured"
    assert inhibited(0, kl=0.05) == "not_measured", "a floor at half the collateral is beaten too easily"


# ------------------------------------------------------------------------------------------------- overlap


def failure(name: str, context: str, effects: dict[int, float]) -> SampleResult:
    nodes = tuple(
        Node(
            id=f"n{f}", hook="layers.1", feature=f, position=0, token="t", role="final", activation=1.0,
            effect_nats=e, confirmed_nats=e, contrast_nats=None,
        )
        for f, e in effects.items()
    )  # fmt: skip
    return SampleResult(
        id=f"{name}@{context}", probe="p", failure_mode="f", context=context,  # type: ignore[arg-type]
        outcome="fail", margin_nats=1.0, group=name,
        attribution=Attribution(method="auto", no_attribution=None, nodes=nodes),
    )  # fmt: skip


def test_circuits_that_share_all_features_overlap_fully_and_others_fall_below_the_permutations() -> None:
    alike = {f: 1.0 + f / 10 for f in range(8)}
    noise = {f: -0.1 for f in range(100, 120)}
    own = [failure(f"x{k}", "neutral", {**alike, **noise}) for k in range(6)]
    same = [failure(f"x{k}", "test", {**alike, **noise}) for k in range(6)]
    other = [failure(f"x{k}", "test", {**{f + 50: e for f, e in alike.items()}, **noise}) for k in range(6)]
    plan = planned([])
    first = next(o for o in overlaps(plan, [*own, *same]) if o.second == "test")
    assert first.jaccard == 1.0 and first.n_shared == 8
    assert first.prevalence_high is not None and first.prevalence_high < 1.0
    assert first.p_different is not None and first.p_different > 0.5
    last = next(o for o in overlaps(plan, [*own, *other]) if o.second == "test")
    assert last.jaccard == 0.0 and last.p_different is not None and last.p_different < 0.1
    assert next(o for o in overlaps(plan, own) if o.second == "test").not_measured is not None
    assert overlaps(plan, []) == ()
    assert len(top(mean_effects(own))) == 8


# ------------------------------------------------------------------------------------------- a whole audit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model on ten items in the whole ladder."""
    suite = rich()
    suite["probes"] = suite["probes"][:1]
    suite["framing"] = {"rungs": ["hint", "statement"]}
    suite["attribution"] = {"confirm": 4, "max_nodes": 8, "multiverse": "off", "rivals": False, "doses": []}
    items = []
    for k in range(5):
        for row in copy.deepcopy(CLAIMS[:4]):
            row["id"] = f"{row['id']}-{k}"
            row["input"] = f"{row['input']} {k}"
            row["group"] = f"{row.get('group', row['id'])}-{k}"
            if "counterfactual" in row:
                row["counterfactual"] = f"{row['counterfactual']}-{k}"
                del row["spans"]
            items.append(row)
    for row in items:
        row["group"] = f"g{row['id'].rpartition('-')[2]}{'2' if '2' in row['id'] else ''}"
    suite["probes"][0]["samples"] = items
    folder = tmp_path_factory.mktemp("contexts")
    path = write_suite(folder / "suite", material(tmp_path_factory.getbasetemp()), suite)
    done = command("audit", path, "--out", folder / "run", "--seed", 1)
    assert done.code in (0, 4), done.err
    return folder / "run"


def test_an_audit_of_contexts_reads_compares_and_verifies(run: Path) -> None:
    assert verify_run(run).level == 2
    found = results_of(run)["contexts"]
    assert {r["framing"] for r in found["rates"]} == {
        "neutral", *(f"{c}/{r}{k}" for c in ("test", "deployment") for r in ("hint", "statement")
                     for k in ("", "/control")),
    }  # fmt: skip
    assert len(found["gaps"]) == 6 and all(g["control"] for g in found["gaps"])
    assert {t["by"] for t in found["told_apart"]} == {"sae", "frozen_random", "bag_of_words", "format_only"}
    assert found["shifts"] and found["awareness"]
    readings = lines_of(run / "readings.jsonl")
    assert {r["what"] for r in readings} >= {"told_apart", "activation", "latent", "verbalised"}
    plan = json.loads((run / "plan.json").read_text())
    assert plan["grid"]["framings_version"] == ["1"]
    assert {s["wording"] for s in plan["samples"] if s["rung"]} > {0}


def test_only_the_counted_rung_is_attributed_and_counted(run: Path) -> None:
    results = results_of(run)
    [mode] = results["failure_modes"]
    beside = [s for s in results["samples"] if s["format_control"] or s["rung"] == "hint"]
    assert beside and not any(s["counted"] or s["attribution"] for s in beside)
    n = {c["context"]: c["n"] for c in mode["by_context"]}
    assert len(set(n.values())) == 1, "each context counts each item once"


def test_a_reading_that_was_changed_is_found(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    lines = (copied / "readings.jsonl").read_text().splitlines(keepends=True)
    (copied / "readings.jsonl").write_text("".join([lines[0], *lines[2:]]))
    assert "readings.jsonl:2" in command("verify", copied).error
    shutil.copy(run / "readings.jsonl", copied)
    results = json.loads((copied / "results.json").read_text())
    results["contexts"]["gaps"][0]["p_adjusted"] = 0.001
    (copied / "results.json").write_text(json.dumps(results))
    assert "contexts: is not what the records give" in command("verify", copied).error


def test_an_interrupted_comparison_is_made_again_with_the_same_readings(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "suite-and-run"
    shutil.copytree(run.parent, copied)
    before = (run / "readings.jsonl").read_bytes()
    (copied / "run" / "results.json").unlink()
    (copied / "run" / "readings.jsonl").write_bytes(before[: len(before) // 2])
    done = command("audit", copied / "suite" / "suite.yaml", "--out", copied / "run", "--seed", 1, "--resume")
    assert done.code in (0, 4), done.err
    assert (copied / "run" / "readings.jsonl").read_bytes() == before


def test_a_pack_carries_the_readings(run: Path, tmp_path: Path) -> None:
    done = command("pack", run, "--out", tmp_path / "pack")
    assert done.code == 0, done.err
    assert (tmp_path / "pack" / "attributions" / "readings.jsonl").is_file()
    assert command("verify", tmp_path / "pack").code == 0
