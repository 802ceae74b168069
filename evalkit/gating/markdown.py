"""A verdict as Markdown, for the comment on a pull request.

Names, reasons and model output are not ours: each stands in a code span of its own, in which nothing is
markup, a mention or a link; what has no visible form is written `⟨U+202E⟩`, and no text spans two lines.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from evalkit.records import FailureModeResult, GateReport, GateResult, Results, SampleResult

_VERDICTS = {"pass": "✓ PASS", "fail": "✕ FAIL", "inconclusive": "◇ INCONCLUSIVE"}
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
N_FAILURES = 5  # chosen: a comment is read in passing; report.pdf has all
LONGEST = 300  # chosen: characters of a prompt or response


def summary_markdown(report: GateReport, results: Results, notes: Sequence[str] = ()) -> str:
    """Verdict, rules, rates, and the worst counted failures."""
    verdict = _VERDICTS[report.verdict] if report.verdict else "no policy, no verdict"
    lines = [
        f"## evalkit: {verdict}",
        "",
        f"Suite {code(results.suite.id)} {code(results.suite.version)} on {code(results.model.ref)}, "
        f"policy {code(report.policy or 'none')}, run {code(results.run.id)}"
        + (f", against run {code(report.baseline)}" if report.baseline else "")
        + ".",
        "",
        *(f"> {note}\n" for note in notes),
        "| verdict | rule | failure mode | estimate | 95 % interval | threshold | n | n that would decide |",
        "|---|---|---|--:|--:|--:|--:|--:|",
        *(_gate_row(gate) for gate in report.gates),
        "",
        *(f"- {code(gate.rule)}: {code(gate.reason)}" for gate in report.gates if gate.reason),
        "",
        "| failure mode | failed | n | 95 % interval | not scored |",
        "|---|--:|--:|--:|--:|",
        *(_mode_row(mode) for mode in results.failure_modes),
        "",
        *_failures(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def code(text: str, longest: int = LONGEST) -> str:
    """`text` on one line in a code span that it cannot leave, also not inside a table."""
    shown = text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest:,} more characters)"
    shown = shown.replace("\r\n", "\n").replace("\n", "⏎").replace("\t", "⇥").replace("|", "⟨U+007C⟩")
    shown = "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in _HIDDEN else c for c in shown)
    if not shown.strip():
        return "(nothing)" if not shown else f"({len(shown)} spaces)"
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith(("`", " ")) or shown.endswith(("`", " ")) else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _gate_row(gate: GateResult) -> str:
    cells = (
        _VERDICTS[gate.verdict],
        code(gate.rule),
        code(gate.failure_mode) if gate.failure_mode else "all",
        _figure(gate.estimate),
        _interval(gate.ci_low, gate.ci_high),
        _figure(gate.threshold),
        f"{gate.n:,}",
        "–" if gate.n_needed is None else f"{gate.n_needed:,}",
    )
    return f"| {' | '.join(cells)} |"


def _mode_row(mode: FailureModeResult) -> str:
    cells = (
        code(mode.id),
        f"{mode.n_failed:,}",
        f"{mode.n:,}",
        _interval(mode.ci_low, mode.ci_high),
        f"{mode.n_unscored:,}",
    )
    return f"| {' | '.join(cells)} |"


def _failures(results: Results) -> list[str]:
    failures = [s for s in results.samples if s.counted and s.outcome == "fail"]
    failures.sort(key=lambda s: (-(s.margin_nats or 0.0), s.id))
    if not failures:
        return ["No counted failure."]
    shown = failures[:N_FAILURES]
    return [f"Worst {len(shown)} of {len(failures):,} counted failures:", "", *(_failure(s) for s in shown)]


def _failure(sample: SampleResult) -> str:
    said = code(sample.response) if sample.response is not None else "no response kept"
    line = f"- {code(sample.id)} ({code(sample.failure_mode)}): {code(sample.prompt)} → {said}"
    nodes = sample.attribution.nodes[:3] if sample.attribution else ()
    if nodes:
        features = ", ".join(f"{code(n.hook)} feature {n.feature}" for n in nodes)
        line += f"; strongest features: {features}"
    return line


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
