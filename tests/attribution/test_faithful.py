"""Faithfulness of a planted circuit: the cause recovers the whole ceiling, a bystander none of it."""

from __future__ import annotations

import pytest
import torch

from evalkit.attribution.attribute import Bench, Coders, make_bench
from evalkit.attribution.faithful import FAILURES, faithfulness, measured_failures
from evalkit.calibration.compiling import FILLERS, Compiled, compile_wiring
from evalkit.calibration.prompts import Observed, observe
from evalkit.calibration.wiring import MOVED
from evalkit.circuits import shared_id
from evalkit.probes.pairs import margins_of_pairs
from evalkit.records import InterventionRecord
from evalkit.recovery import recovery
from evalkit.saes.coder import Sae


@pytest.fixture(scope="module")
def observed() -> Observed:
    return observe(compile_wiring(MOVED, 0), 12, 0.5, 0)


@pytest.fixture(scope="module")
def bench(observed: Observed) -> Bench:
    compiled = observed.compiled
    return make_bench(compiled.model, observed.probe, observed.cases, observed.prompts, compiled.saes, 0)


def feature(compiled: Compiled, hook: str, role: str, name: str) -> str:
    return shared_id(hook, role, compiled.features[name])


def curve(observed: Observed, bench: Bench, nodes: list[str]) -> list[InterventionRecord]:
    every = measured_failures([c.sample.id for c in observed.cases], [bench])
    audited = Coders("none", None, observed.compiled.saes)
    return faithfulness("m", [bench], every, audited, nodes, (1, 2, 8))


def test_the_planted_cause_recovers_the_whole_ceiling_at_its_place(observed: Observed, bench: Bench) -> None:
    node = feature(observed.compiled, "layers.1", "final", "moved:alpha")
    points = recovery(curve(observed, bench, [node]))
    assert [(p.kind, p.size) for p in points] == [("none", 1), ("none", 2), ("none", 8)]
    for point in points:
        assert point.n == len(observed.cases) and point.n_flipped == point.n
        assert point.recovered_share == pytest.approx(1.0, abs=0.03)
        assert point.margin_share is not None and point.margin_share > 1.0, "past the border: the twin passes"


def test_a_bystander_at_the_same_place_recovers_nothing(observed: Observed, bench: Bench) -> None:
    node = feature(observed.compiled, "layers.1", "final", "hidden")
    for point in recovery(curve(observed, bench, [node])):
        assert point.recovered_share == pytest.approx(0.0, abs=0.03) and point.n_flipped == 0
        assert point.ceiling_nats is not None and point.ceiling_nats > 2.0


def test_the_ceiling_grows_with_the_places_of_the_nodes(observed: Observed, bench: Bench) -> None:
    """A filler at `question` opens no new cause; the word at its own span does."""
    compiled = observed.compiled
    filler = feature(compiled, "layers.0", "question", FILLERS[0])
    word = feature(compiled, "layers.0", "alpha", "alpha")
    small, both, _ = recovery(curve(observed, bench, [filler, word]))
    assert small.ceiling_nats == pytest.approx(0.0, abs=0.05)
    assert both.ceiling_nats is not None and both.ceiling_nats > 2.0
    assert both.recovered_share == pytest.approx(1.0, abs=0.05)


def test_a_size_beyond_the_nodes_takes_all_and_no_node_gives_no_line(
    observed: Observed, bench: Bench
) -> None:
    node = feature(observed.compiled, "layers.1", "final", "moved:alpha")
    rows = curve(observed, bench, [node])
    assert {r.nodes for r in rows} == {(node,)} and {r.size for r in rows} == {1, 2, 8}
    assert curve(observed, bench, []) == []


def test_margins_are_those_of_a_full_forward_with_the_stream_moved(observed: Observed, bench: Bench) -> None:
    compiled = observed.compiled
    node = feature(compiled, "layers.1", "final", "moved:alpha")
    direction = compiled.saes["layers.1"].W_dec[compiled.features["moved:alpha"]]
    rows = {r.sample: r for r in curve(observed, bench, [node]) if r.size == 1 and r.control_kind == "none"}
    for case in observed.cases:
        here = compiled.saes["layers.1"]

        def moved(_m: object, _i: object, x: torch.Tensor, here: Sae = here) -> torch.Tensor:
            value = here.encode(x[:, -1].float())[0, compiled.features["moved:alpha"]]
            x = x.clone()
            x[:, -1] -= value * direction  # the twin lacks the word: its value is zero
            return x

        handle = compiled.model.blocks[1].register_forward_hook(moved)
        with torch.no_grad():
            run = compiled.model.read([case.prompt.ids])
            expected = float(margins_of_pairs(compiled.model, run, [case.pair])[0])
        handle.remove()
        assert rows[case.sample.id].margin_after_nats == pytest.approx(expected, abs=0.01)


def test_only_the_first_failures_with_a_baseline_are_measured(observed: Observed, bench: Bench) -> None:
    names = [c.sample.id for c in observed.cases]
    assert measured_failures(names[2:], [bench]) == frozenset(names[2:])
    assert len(measured_failures(names * 3, [bench])) <= FAILURES
    alone = [c._replace(contrast=c.contrast._replace(kind="unpaired")) for c in observed.cases]
    assert measured_failures(names, [bench._replace(cases=alone)]) == frozenset()
