"""Edges against slow, independent versions: finite differences and full forwards, one change at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_attribute import HOOKS, SAMPLES, SPEC, attribute, topk  # type: ignore[import-not-found]

from evalkit.attribution import edges
from evalkit.attribution.attribute import Attributed
from evalkit.attribution.influence import Scores, Weights, prune
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.choice import ChoiceProbe
from evalkit.records import AttributionSpec, Edge, Node
from evalkit.saes.coder import Sae
from evalkit.saes.floors import residual_coordinates
from evalkit.scorers import make_scorer

ALL = AttributionSpec(edge_nodes=16)
SAES: dict[str, Sae] = {h: topk(h, n) for n, h in enumerate(HOOKS)}


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(tiny_dir)))


@pytest.fixture(scope="module")
def done(model: TextModel) -> list[Attributed]:
    return attribute(model, ChoiceProbe(SPEC, make_scorer(None, "choice")), SAES, spec=ALL)


def streams(model: TextModel, name: str, changes: dict[str, object]) -> dict[str, torch.Tensor]:
    """The streams of one full forward, with streams (or the embeddings) changed by plain hooks."""
    kept: dict[str, torch.Tensor] = {}
    handles = []
    for hook in HOOKS:

        def after(_m: object, _i: object, out: torch.Tensor, hook=hook) -> torch.Tensor:  # type: ignore[no-untyped-def]
            x = out[0] if isinstance(out, tuple) else out
            change = changes.get(hook)
            x = x if change is None else change(x)  # type: ignore[operator]
            kept[hook] = x[0]
            return (x, *out[1:]) if isinstance(out, tuple) else x

        handles.append(model.blocks[model.layer_of(hook)].register_forward_hook(after))

    def enter(_m: object, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        change = changes.get("embedding")
        x = inputs[0] if change is None else change(inputs[0])  # type: ignore[operator]
        kept["embedding"] = x[0]
        return (x, *inputs[1:])

    handles.append(model.blocks[0].register_forward_pre_hook(enter))
    with torch.no_grad():
        model.module(torch.tensor([model.encode(SAMPLES[name]).ids]))
    for handle in handles:
        handle.remove()
    return kept


def parts(result: Attributed) -> list[tuple[Edge, Node, Node]]:
    """Edges between nodes, with both ends."""
    nodes = {n.id: n for n in result.attribution.nodes}
    return [(e, nodes[e.source], nodes[e.target]) for e in result.attribution.edges if e.source in nodes]


def test_confirmed_edges_equal_full_forwards(model: TextModel, done: list[Attributed]) -> None:
    moved = dict.fromkeys(("ablation", "contrast"), 0)
    for result in done:
        clean = streams(model, result.sample, {})
        for edge, source, target in parts(result):
            assert (source.hook, target.hook) == HOOKS and source.position <= target.position
            after = streams(model, result.sample, {source.hook: moved_to_baseline(source)})
            read = [
                float(SAES[target.hook].encode(s[target.hook][target.position])[target.feature])
                for s in (clean, after)
            ]
            assert edge.confirmed_activation == pytest.approx(read[0] - read[1], abs=1e-3)
            assert target.confirmed_nats is not None and edge.confirmed_activation is not None
            if target.activation != 0:
                slope = target.confirmed_nats / target.activation
                assert edge.effect_nats == pytest.approx(edge.confirmed_activation * slope)
            moved[edge.baseline] += abs(edge.confirmed_activation) > 1e-2
    assert moved["ablation"] > 10 and moved["contrast"] > 0


def moved_to_baseline(source: Node) -> Callable[[torch.Tensor], torch.Tensor]:
    """An active source at zero, another at its contrast value, by two dense decodes."""
    sae, value = SAES[source.hook], 0.0 if source.activation else source.baseline_activation

    def change(x: torch.Tensor) -> torch.Tensor:
        z = sae.encode(x)
        after = z.clone()
        after[0, source.position, source.feature] = value
        return x + sae.decode(after) - sae.decode(z)

    return change


def test_estimates_are_slopes_of_what_the_target_reads(model: TextModel, done: list[Attributed]) -> None:
    """A central difference along the source's own direction gives the same number."""
    step, checked = 1e-2, 0
    for edge, source, target in parts(done[0])[:6]:
        direction = (source.activation or -(source.baseline_activation or 0.0)) * SAES[source.hook].W_dec[
            source.feature
        ]
        assert edge.estimate_activation == pytest.approx(
            _slope(model, target, source.hook, source.position, direction, step), abs=0.02
        )
        checked += abs(edge.estimate_activation) > 1e-2
    assert checked


def test_errors_and_tokens_are_sources(model: TextModel, done: list[Attributed]) -> None:
    nodes = {n.id: n for n in done[0].attribution.nodes}
    columns = [e for e in done[0].attribution.edges if e.source not in nodes]
    for kind in ("/error", "embedding/"):
        edge = next(e for e in columns if kind in e.source and abs(e.estimate_activation) > 1e-2)
        assert edge.confirmed_activation is None and edge.effect_nats is None, "only estimated"
        position = int(edge.source.split("/")[1].removeprefix("p"))
        hook = edge.source.split("/")[0]
        vector = streams(model, done[0].sample, {})[hook][position]
        if kind == "/error" and position > 0:  # position 0 is not decomposed: the whole stream is error
            vector = vector - SAES[hook].decode_at(SAES[hook].encode(vector), vector)
        found = _slope(model, nodes[edge.target], hook, position, vector, 1e-2)
        assert edge.estimate_activation == pytest.approx(found, abs=0.02)


def _slope(
    model: TextModel, target: Node, hook: str, position: int, direction: torch.Tensor, step: float
) -> float:
    read = []
    for by in (step, -step):

        def push(x: torch.Tensor, by: float = by) -> torch.Tensor:
            x = x.clone()
            x[0, position] += by * direction
            return x

        x = streams(model, "a-0", {hook: push})[target.hook][target.position]
        read.append(float(SAES[target.hook].encode_pre(x)[target.feature]))
    return (read[0] - read[1]) / (2 * step)


def test_every_edge_rests_on_a_ledger_line(done: list[Attributed]) -> None:
    for result in done:
        readings = {r.nodes[0]: r for r in result.interventions if r.purpose == "edge"}
        for edge, _source, target in parts(result):
            line = readings[edge.source]
            assert line.baseline == edge.baseline and line.margin_after_nats is None
            before, after = line.targets[target.id]
            assert edge.confirmed_activation == before - after
            assert before == pytest.approx(target.activation, abs=1e-4)
        assert readings and all(len(r.nodes) == 1 for r in readings.values())


def test_a_batch_gives_the_edges_that_single_failures_give(model: TextModel, done: list[Attributed]) -> None:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    for together in done:
        [alone] = attribute(model, probe, SAES, (together.sample,), ALL)
        one = {(e.source, e.target): e for e in alone.attribution.edges}
        for edge in together.attribution.edges:
            other = one.get((edge.source, edge.target))
            if other is not None and edge.confirmed_activation is not None:
                assert edge.estimate_activation == pytest.approx(other.estimate_activation, abs=1e-3)
                assert edge.confirmed_activation == pytest.approx(other.confirmed_activation, abs=1e-3)


def test_influence_and_scores_are_shares(done: list[Attributed]) -> None:
    for result in done:
        attribution = result.attribution
        assert attribution.replacement_score is not None and 0 < attribution.replacement_score < 1
        assert attribution.completeness_score is not None and 0 < attribution.completeness_score < 1
        inside = [n for n in attribution.nodes if n.influence is not None]
        assert inside and all(n.confirmed_nats is not None for n in inside)
        kept = [e for e in attribution.edges if not e.pruned]
        assert 0 < len(kept) < len(attribution.edges)
        assert all((e.influence or 0) > 0 for e in kept)


def test_without_errors_the_graph_is_complete(model: TextModel) -> None:
    """An SAE of residual coordinates explains all but position 0, which it does not read."""
    saes = {h: residual_coordinates(s) for h, s in SAES.items()}
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    sparse, whole = (attribute(model, probe, s, ("a-0",))[0].attribution for s in (SAES, saes))
    assert whole.completeness_score > sparse.completeness_score + 0.1  # type: ignore[operator]
    at_0 = {f"{h}/p0/error" for h in HOOKS}
    for edge in whole.edges:
        assert (
            not edge.source.endswith("/error") or edge.source in at_0 or abs(edge.estimate_activation) < 1e-3
        )


def test_no_edges_are_looked_for_when_none_are_wanted(model: TextModel) -> None:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    [result] = attribute(model, probe, SAES, ("a-0",), AttributionSpec(edge_nodes=0))
    assert result.attribution.edges == () and result.attribution.replacement_score is None
    assert not [r for r in result.interventions if r.purpose == "edge"]
    [few] = attribute(model, probe, SAES, ("a-0",), AttributionSpec(max_edges=3))
    assert len(few.attribution.edges) == 3


def test_every_path_from_the_margin_ends_in_an_error_or_a_token(
    model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Weights] = []
    monkeypatch.setattr(edges, "scores", lambda graph: seen.append(graph) or Scores(0.5, 0.5))
    attribute(model, ChoiceProbe(SPEC, make_scorer(None, "choice")), SAES)
    assert len(seen) == 2
    for graph in seen:
        leaves = graph.errors | graph.tokens
        assert prune(graph).influence[leaves].sum() == pytest.approx(1.0)
        assert not graph.matrix[leaves].any(), "what the SAE left and what was said have no sources"
