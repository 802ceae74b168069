"""Gates and samples as JUnit XML, the one test format that every pipeline reads.

A gate: PASS is a passed test, FAIL a `<failure>`, INCONCLUSIVE an `<error>`: a pipeline that reads
nothing but this file must not go green. A sample: a counted failure is a `<failure>`, an unscored sample an
`<error>`, and what no rate counts (controls, twins, invalid items) is `<skipped>`.

Model output may hold characters that XML 1.0 forbids even when escaped; they are written `⟨U+0000⟩`.
No clock, no host name: equal figures give equal bytes.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Literal, NamedTuple

from evalkit.records import GateResult, SampleResult

__all__ = [
    "Case",
    "Suite",
    "gate_figures",
    "gate_label",
    "gate_suite",
    "junit_xml",
    "printable",
    "sample_suites",
]

_FORBIDDEN = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Everything outside XML 1.0's `Char` (section 2.2), and the carriage return: parsers read it as `\\n`."""
LONGEST = 2000  # chosen: characters of a prompt or response shown; results.json has all


class Case(NamedTuple):
    """One test: a gate's rule or a sample."""

    name: str
    classname: str
    outcome: Literal["pass", "failure", "error", "skipped"]
    message: str = ""
    detail: str = ""


class Suite(NamedTuple):
    """Tests that belong together."""

    name: str
    cases: tuple[Case, ...]


def junit_xml(name: str, suites: Sequence[Suite]) -> bytes:
    """The suites as one JUnit file, UTF-8, with its counts."""
    root = ET.Element(
        "testsuites", {"name": printable(name), **_counts([c for s in suites for c in s.cases])}
    )
    for suite in suites:
        element = ET.SubElement(root, "testsuite", {"name": printable(suite.name), **_counts(suite.cases)})
        for case in suite.cases:
            test = ET.SubElement(
                element, "testcase", {"name": printable(case.name), "classname": printable(case.classname)}
            )
            if case.outcome != "pass":
                why = {"message": printable(case.message)}
                if case.outcome != "skipped":
                    why["type"] = case.outcome
                ET.SubElement(test, case.outcome, why).text = printable(case.detail) or None
            elif case.detail:
                ET.SubElement(test, "system-out").text = printable(case.detail)
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'.encode()


def gate_suite(gates: Sequence[GateResult], name: str = "gates") -> Suite:
    """One test per rule (and failure mode) of a policy."""
    kinds: dict[str, Literal["pass", "failure", "error"]] = {
        "pass": "pass", "fail": "failure", "inconclusive": "error"
    }  # fmt: skip
    cases = []
    for gate in gates:
        words = f"{gate.verdict.upper()}: {gate_figures(gate)}"
        cases.append(
            Case(gate_label(gate), f"gate.{gate.metric or 'rule'}", kinds[gate.verdict], words, words)
        )
    return Suite(name, tuple(cases))


def gate_label(gate: GateResult) -> str:
    """The rule and what it was applied to."""
    return gate.rule if gate.failure_mode is None else f"{gate.rule} ({gate.failure_mode})"


def gate_figures(gate: GateResult) -> str:
    """`estimate 0.25 (0.1 to 0.4), threshold 0.2, n 40`, and what would decide."""
    if gate.estimate is None:
        words = "nothing measured"
    elif gate.ci_low is None or gate.ci_high is None:
        words = f"estimate {gate.estimate:.4g}"
    else:
        words = f"estimate {gate.estimate:.4g} (95 % interval {gate.ci_low:.4g} to {gate.ci_high:.4g})"
    if gate.threshold is not None:
        words += f", threshold {gate.threshold:.4g}"
    words += f", n {gate.n}"
    if gate.n_needed is not None:
        words += f", n that would decide {gate.n_needed}"
    return f"{words}; {gate.reason}" if gate.reason else words


def sample_suites(samples: Sequence[SampleResult]) -> tuple[Suite, ...]:
    """One suite per failure mode, one test per sample."""
    modes = dict.fromkeys(s.failure_mode for s in samples)
    return tuple(Suite(m, tuple(_sample(s) for s in samples if s.failure_mode == m)) for m in modes)


def printable(text: str) -> str:
    """`text` with every character that XML 1.0 cannot carry written as its code point, `⟨U+0000⟩`."""
    return _FORBIDDEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def _sample(sample: SampleResult) -> Case:
    where = f"{sample.failure_mode}.{sample.probe}.{sample.context}"
    detail = f"prompt: {sample.prompt[:LONGEST]}\nresponse: {(sample.response or '')[:LONGEST]}"
    if sample.outcome == "unscored":
        return Case(sample.id, where, "error", f"unscored: {sample.reason or 'no reason given'}", detail)
    if not sample.counted:
        return Case(sample.id, where, "skipped", f"not counted: {sample.not_counted or 'no reason given'}")
    if sample.outcome == "pass":
        return Case(sample.id, where, "pass")
    margin = "not measured" if sample.margin_nats is None else f"{sample.margin_nats:+.3f} nats"
    return Case(sample.id, where, "failure", f"{sample.failure_mode}; margin {margin}", detail)


def _counts(cases: Sequence[Case]) -> dict[str, str]:
    outcomes = [c.outcome for c in cases]
    return {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("failure")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skipped")),
    }
