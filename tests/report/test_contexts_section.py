"""The section on contexts: what a chart calls a pair of framings."""

from __future__ import annotations

from evalkit.report.contexts import _short


def test_a_format_control_is_never_labelled_as_its_cue() -> None:
    assert _short("test/statement/control", "test/statement") == "test/statement vs control"
    assert _short("neutral", "test/statement/control") == "test control vs neutral"
    assert _short("deployment/hint", "test/hint") == "test/hint vs deployment/hint"
