"""What the command prints, as rich tables; `cli.py` prints them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from evalkit import calibrated
from evalkit.records import (
    FailureModeResult,
    GateReport,
    Proportion,
    Results,
    RunQuality,
    SaeQuality,
    SampleResult,
    SparseProbe,
)

if TYPE_CHECKING:
    from evalkit.calibrated import Calibration
    from evalkit.power import Plan
    from evalkit.saes.labels import FeatureLabel

VERDICTS = {"pass": "✓ PASS", "fail": "✕ FAIL", "inconclusive": "◇ INCONCLUSIVE"}


def rates(results: Results) -> Table:
    """Per failure mode: counts, rate, both intervals, what was not counted, and how much is attributed.

    Conditional rates stand below their rate, controls at the end.
    """
    heads = ("failure mode", "failed", "n", "rate", "95 % interval", "not counted", "attributed")
    table = Table(*heads)
    for mode in sorted(results.failure_modes, key=lambda m: m.control_of is not None):
        mine = [s for s in results.samples if s.failure_mode == mode.id and s.counted and s.attribution]
        attributed = sum(s.attribution is not None and s.attribution.method is not None for s in mine)
        of = mode.control_of
        table.add_row(
            mode.id if of is None else f"{mode.id}\n({of.kind} control of {of.failure_mode})",
            *_figures(mode),
            ", ".join(f"{n} {what}" for n, what in _left_out(mode) if n) or "–",
            f"{attributed} of {len(mine)}" if mine else "–",
        )
        for words, given in (
            ("  given knowledge", mode.given_knowledge),
            ("  given that it stated otherwise", mode.given_stated),
        ):
            if given is not None:
                table.add_row(words, *_figures(given), "", "")
    return table


def _figures(rate: FailureModeResult | Proportion) -> tuple[str, str, str, str]:
    interval = "no sample"
    if rate.ci_low is not None:
        interval = f"{rate.ci_low:.1%} – {rate.ci_high:.1%} Wilson"
    if rate.ci_cluster_low is not None:
        interval += (
            f"\n{rate.ci_cluster_low:.1%} – {rate.ci_cluster_high:.1%} clustered, {rate.n_groups} groups"
        )
    shown = f"{rate.rate:.1%}" if rate.rate is not None else "–"
    return str(rate.n_failed), str(rate.n), shown, interval


def _left_out(mode: FailureModeResult) -> tuple[tuple[int, str], ...]:
    other = mode.n_unscored - mode.n_abstained - mode.n_degenerate - mode.n_errored
    return (
        (mode.n_knowledge_errors, "knowledge errors"),
        (mode.n_not_stated, "not stated otherwise"),
        (mode.n_abstained, "abstained"),
        (mode.n_degenerate, "degenerate"),
        (mode.n_errored, "errored"),
        (other, "otherwise unscored"),
        (mode.n_invalid, "invalid"),
    )


def worst_failures(results: Results) -> Table | None:
    """The three counted failures with the largest margins, and their strongest features in words."""
    failures = [
        s
        for s in results.samples
        if s.counted and s.outcome == "fail" and s.attribution and s.attribution.nodes
    ]
    failures.sort(key=lambda s: (-(s.margin_nats or 0.0), s.id))
    if not failures:
        return None
    table = Table("worst failures", "margin (nats)", "strongest measured features", show_lines=True)
    for sample in failures[:3]:
        prompt = " ".join(sample.prompt.split())
        said = f"{prompt[:90]}{'…' if len(prompt) > 90 else ''}\n→ {(sample.response or '')[:60]!r}"
        margin = f"{sample.margin_nats:+.2f}" if sample.margin_nats is not None else "–"
        table.add_row(escape(said), margin, escape("\n".join(_in_words(results, sample))))
    return table


def _in_words(results: Results, sample: SampleResult) -> list[str]:
    features = {(f.hook, f.feature): f for f in results.features}
    assert sample.attribution is not None
    lines = []
    for node in sample.attribution.nodes[:3]:
        known = features.get((node.hook, node.feature))
        promoted = ", ".join(repr(t) for t in known.promoted_tokens[:3]) if known else "not described"
        lines.append(
            f"{node.hook} feature {node.feature} at {node.token!r} ({node.role}): "
            f"{node.confirmed_nats or 0.0:+.2f} nats; promotes {promoted}"
        )
    return lines


def labels(made: Sequence[FeatureLabel]) -> Table:
    """Labels with their source and score, the best-scored first."""
    table = Table("feature", "label", "source", "balanced accuracy", "contexts")

    def rank(label: FeatureLabel) -> tuple[float, int]:
        score = label.label_score
        known = score.balanced_accuracy if score else None
        return (-known if known is not None else 1.0, label.feature)

    for label in sorted(made, key=rank)[:40]:
        score = label.label_score
        n = f"{score.n_firing} + {score.n_other}" if score else "–"
        shown = figure(score.balanced_accuracy) if score else "not measured"
        table.add_row(str(label.feature), escape(label.label), escape(label.label_source), shown, n)
    return table


def calibration(found: Calibration) -> tuple[tuple[Table, ...], str]:
    """What the pipeline found on each planted model, null runs, coverage, and the sentences under them."""
    kinds = (
        (calibrated.VARIANT_HEADS, calibrated.variant_rows(found)),
        (calibrated.NULL_HEADS, calibrated.null_rows(found)),
        (calibrated.FRAME_HEADS, calibrated.frame_rows(found)),
        (calibrated.GATE_HEADS, calibrated.gate_rows(found)),
        (calibrated.COVERAGE_HEADS, calibrated.coverage_rows(found)),
    )
    tables = []
    for heads, rows in kinds:
        columns = (Column(h, no_wrap=len(h) < 8) for h in heads)
        table = Table(*columns, box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for row in rows:
            table.add_row(*row)
        tables += [table] if rows else []
    broken = [e for e in found.expectations if not e.holds]
    n = len(found.expectations)
    lines = [
        calibrated.VARIANT_NOTE,
        *(f"✕ {e.variant}: {e.rule}: {e.found}" for e in broken),
        f"{n - len(broken)} of {n} expectations hold.",
    ]
    return tuple(tables), "\n".join(lines)


def gates(judged: GateReport) -> Table:
    """One row per rule of the policy; the reasons are printed below it."""
    table = Table("gate", "estimate", "95 % interval", "threshold", "n", "would decide", "verdict")
    for g in judged.gates:
        table.add_row(
            g.rule,
            figure(g.estimate),
            f"{figure(g.ci_low)} – {figure(g.ci_high)}",
            figure(g.threshold),
            str(g.n),
            figure(g.n_needed),
            VERDICTS[g.verdict],
        )
    return table


def power(plans: Mapping[str, Plan], difference: float | None) -> Table:
    """Per failure mode: items, groups, and the smallest difference that they can see."""
    heads = ["failure mode", "n", "groups", "design effect", "sees unpaired", "sees paired"]
    if difference is not None:
        heads += [f"n for {difference:g} unpaired, per run", f"n for {difference:g} paired"]
    table = Table(*heads)
    for mode, p in plans.items():
        seen = [f"{d:.1%}" if d is not None else "nothing" for d in (p.unpaired, p.paired)]
        needed = [f"{n:,}" if n is not None else "–" for n in (p.n_unpaired, p.n_paired)]
        row = [mode, str(p.n), str(p.n_groups), f"{p.design_effect:.2f}", *seen]
        table.add_row(*row, *(needed if difference is not None else []))
    return table


def judged(quality: SaeQuality, floor: SaeQuality, on_run: RunQuality | None) -> Iterator[Table]:
    """Figures of an SAE beside its frozen-random floor: on held-out text, then on a run."""
    columns: dict[str, tuple[SaeQuality | None, SaeQuality | None]] = {"held-out text": (quality, floor)}
    if on_run is not None:
        columns["the run's failures"] = (on_run.on_failures, on_run.random_on_failures)
        columns["the run's passes"] = (on_run.on_passes, on_run.random_on_passes)
    table = Table("figure; in brackets the frozen-random floor", *columns)
    for field in SaeQuality.model_fields:
        pairs = ([figure(getattr(q, field)) if q else "–" for q in pair] for pair in columns.values())
        table.add_row(field, *(f"{own} ({other})" for own, other in pairs))
    yield table
    if on_run is not None:
        note = Table("error share in the run, all its SAEs together", "failures")
        note.add_row(figure(on_run.error_share), str(on_run.n_attributed))
        yield note


def probing(probes: Sequence[SparseProbe]) -> Table | str:
    """AUROC of probes on a few features, beside the floor's and the dense probe's."""
    if not probes:
        return "Sparse probing: not measured (the text has one source, or too few texts)"
    ks = list(probes[0].sae)
    table = Table("AUROC; in brackets the frozen-random floor", *(f"k = {k}" for k in ks), "whole stream")
    for probe in probes:
        few = (f"{figure(probe.sae[k])} ({figure(probe.random[k])})" for k in ks)
        table.add_row(f"{probe.concept} ({probe.n_test} tested)", *few, figure(probe.dense))
    return table


def figure(value: float | None) -> str:
    """A number for a table; `–` if it was not measured."""
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
