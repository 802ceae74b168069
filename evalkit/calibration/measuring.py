"""One calibration model through the ordinary pipeline, compared with what is known of it.

1. Wire, compile, run and score; failures and their twins go into `attribute_batch` unchanged, with the
   exact SAEs, frozen-random SAEs and residual coordinates.
2. Every exact effect is measured again by full forwards (`truth`).
3. Certified nodes are compared with the planted ones; estimates with exact effects; flips with the floors.
4. The same again with the decoder's rows shuffled: a planted circuit must not be found.
5. Redundant pairs that the pipeline named are compared with the planted ones, and with what ablating every
   pair shows (`pairs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Literal, NamedTuple

import torch

from evalkit import stats
from evalkit.attribution.attribute import Attributed, Coders, attribute_batch
from evalkit.attribution.capture import decomposed_positions
from evalkit.attribution.cases import Case
from evalkit.calibrated import EdgeFigures, EstimatorFigures, FloorFigures, VariantFigures
from evalkit.calibration.compiling import FILLERS, Compiled, compile_wiring, shuffled
from evalkit.calibration.edge_truth import compare_edges
from evalkit.calibration.pairs import redundant_pairs
from evalkit.calibration.prompts import Observed, observe, word_position
from evalkit.calibration.truth import Effect, Key, true_effects
from evalkit.calibration.wiring import PLACES, Cause, Wiring
from evalkit.records import AttributionSpec, ControlKind, Edge, Node
from evalkit.saes.coder import Sae
from evalkit.saes.floors import frozen_random, residual_coordinates

MINIMUM_NATS = 0.5  # chosen: a tenth of the smallest planted effect
TOLERANCE_NATS = 0.05  # chosen: inert features move a norm by up to 0.3 %, so a margin by under 0.02
SIZES = (1, 2, 4, 8, 16)
N_RANDOM = 5  # DESIGN §5: at least five seeds
N_PAIR_CASES = 4  # failures searched for redundant pairs
SPEC = AttributionSpec(max_nodes=4096)  # the default `confirm`; every estimate is kept for comparison

_Name = Literal["gradient", "gradient_frozen_scales", "gradient_contrast"]


class Setting(NamedTuple):
    """How many samples, and how many of them fail."""

    n_groups: int
    failing_rate: float


class _Failure(NamedTuple):
    """One failure: what was planted, what is true, and what the pipeline said."""

    planted: dict[Key, Cause]
    true: dict[Key, Effect]
    nodes: dict[Key, Node]


def measure(wiring: Wiring, seed: int, setting: Setting) -> tuple[VariantFigures, Observed]:
    """The figures of one variant, and the observed model for further checks."""
    compiled = compile_wiring(wiring, seed)
    observed = observe(compiled, setting.n_groups, setting.failing_rate, seed)
    done = _attribute(observed, compiled.saes, controls(observed), seed)
    failures = [
        _Failure(
            planted_nodes(observed, case),
            true_effects(observed, case, compiled.saes),
            _nodes(attributed),
        )
        for case, attributed in zip(observed.cases, done, strict=True)
    ]
    wrong = _attribute(observed, shuffled(compiled, seed), [], seed)
    _, n_shuffled = _n_recalled(
        [f._replace(nodes=_nodes(a)) for f, a in zip(failures, wrong, strict=True)],
        lambda c: c.alone and c.listed,
    )
    edges = compare_edges(observed, [f.planted for f in failures], edges_of(done))
    pairs = _pairs(observed, [f.nodes for f in failures])
    return _figures(observed, seed, failures, n_shuffled, floors(done), edges, pairs), observed


def planted_nodes(observed: Observed, case: Case) -> dict[Key, Cause]:
    """The nodes of one failure that cause it by construction."""
    twin = observed.prompts[case.contrast.samples[0]]
    final = len(case.prompt.ids) - 1
    planted = {}
    for cause in observed.compiled.wiring.causes:
        hook, name = PLACES[cause.place]
        position = final
        if cause.place == "word":
            holder = case.prompt if cause.baseline == "ablation" else twin
            position = word_position(holder, cause.word) or 0
        planted[Key(hook, position, observed.compiled.features[name.format(cause.word)])] = cause
    return planted


def weak_features(compiled: Compiled) -> set[int]:
    """Words that each add a little to the failure, wherever they stand: true causes, but not planted ones."""
    return {compiled.features[f] for f in FILLERS} if compiled.wiring.crowd else set()


def controls(observed: Observed) -> list[Coders]:
    """Frozen-random SAEs with the exact ones' sparsity on the failures' prompts, and coordinates."""
    saes, model = observed.compiled.saes, observed.compiled.model
    if not observed.cases:
        return []
    with torch.no_grad():
        run = model.read([c.prompt.ids for c in observed.cases], list(saes))
    streams = {}
    for hook, sae in saes.items():
        rows = [run.streams[hook][n, run.offset(n) :] for n in range(len(observed.cases))]
        streams[hook] = torch.cat([r[torch.tensor(decomposed_positions(r, sae.card))] for r in rows])
    random = [
        Coders("frozen_random", s, {h: frozen_random(sae, s, streams[h]) for h, sae in saes.items()})
        for s in range(N_RANDOM)
    ]
    coordinates = {h: residual_coordinates(sae) for h, sae in saes.items()}
    return [*random, Coders("residual_coordinate", None, coordinates)]


def floors(done: Sequence[Attributed]) -> FloorFigures:
    """The size at which the audited SAEs lead the best control by most flips; ties: the smallest."""
    flips: Counter[tuple[ControlKind, int | None, int]] = Counter()
    for record in (r for a in done for r in a.interventions if r.purpose == "necessity"):
        if record.control_kind != "whole_stream":
            flips[record.control_kind, record.control_seed, record.size] += record.flipped
    points = []
    for size in SIZES:
        kinds = [(n, kind) for (kind, _, s), n in sorted(flips.items(), key=str) if s == size]
        floor, kind = max(((n, k) for n, k in kinds if k != "none"), default=(0, "none"))
        own = flips["none", None, size]
        points.append((own - floor, -size, own, floor, kind))
    _, size, own, floor, kind = max(points)
    return FloorFigures(size=-size, n=len(done), n_flipped=own, n_flipped_floor=floor, floor=kind)  # type: ignore[arg-type]


def _attribute(
    observed: Observed, saes: dict[str, Sae], others: Sequence[Coders], seed: int
) -> list[Attributed]:
    if not observed.cases:
        return []
    return attribute_batch(
        observed.compiled.model, observed.probe, observed.cases, observed.prompts,
        Coders("none", None, saes), others, SPEC, SIZES, seed,
    )  # fmt: skip


def _nodes(attributed: Attributed) -> dict[Key, Node]:
    return {Key(n.hook, n.position, n.feature): n for n in attributed.attribution.nodes}


def edges_of(done: Sequence[Attributed]) -> list[tuple[Edge, ...]] | None:
    """Each failure's edges; None if no edge was measured by intervention."""
    edges = [a.attribution.edges for a in done]
    measured = any(e.confirmed_activation is not None for row in edges for e in row)
    return edges if measured else None


def _figures(
    observed: Observed,
    seed: int,
    failures: Sequence[_Failure],
    n_shuffled: int,
    floor: FloorFigures,
    edges: EdgeFigures,
    pairs: _PairCount,
) -> VariantFigures:
    wiring, weak = observed.compiled.wiring, weak_features(observed.compiled)
    own = [s for s in observed.samples.values() if not s.control]
    planted = [(f, k, c) for f in failures for k, c in f.planted.items()]
    shown = [(f, k, c) for f, k, c in planted if c.alone]
    certified = [(f, k, n) for f in failures for k, n in f.nodes.items() if n.confirmed_nats is not None]
    others = [_effect(n) for f, k, n in certified if k not in f.planted and k.feature not in weak]
    correlates = _correlates(observed.compiled)
    fired = [n for _, k, n in certified if k.feature in correlates]
    n_planted, n_recalled = _n_recalled(failures, lambda c: c.alone and c.listed)
    n_blind, n_blind_recalled = _n_recalled(failures, lambda c: not c.alone)
    n_unlisted, n_unlisted_recalled = _n_recalled(failures, lambda c: not c.listed)
    return VariantFigures(
        variant=wiring.name,
        title=wiring.title,
        seed=seed,
        n=len(own),
        n_failed=sum(observed.outcomes[s.id] == "fail" for s in own),
        as_wired=observed.as_wired,
        n_shown=len(shown),
        n_shown_true=sum(
            k in f.true and abs(getattr(f.true[k], c.baseline)) >= MINIMUM_NATS for f, k, c in shown
        ),
        n_unwired=sum(
            k not in f.planted and k.feature not in weak and e.largest > TOLERANCE_NATS
            for f in failures
            for k, e in f.true.items()
        ),
        n_planted=n_planted,
        n_recalled=n_recalled,
        recall=n_recalled / n_planted if n_planted else None,
        n_false=sum(e > TOLERANCE_NATS for e in others),
        largest_other_nats=round(max(others, default=0.0), 4),
        n_blind=n_blind,
        n_blind_recalled=n_blind_recalled,
        n_unlisted=n_unlisted,
        n_unlisted_recalled=n_unlisted_recalled,
        n_correlates=len(fired),
        n_correlates_flagged=sum(_effect(n) > TOLERANCE_NATS for n in fired),
        ablation_gap_nats=_gap([(n.confirmed_nats, _true(f, k).ablation) for f, k, n in certified]),
        contrast_gap_nats=_gap([(n.contrast_nats, _true(f, k).contrast) for f, k, n in certified]),
        estimators=tuple(_estimator(name, failures) for name in _ESTIMATES),
        n_gradient_blind=sum(not c.by_gradient for _, _, c in shown),
        n_pairs_planted=pairs.planted,
        n_pairs_true=pairs.true,
        n_pairs_found=pairs.found,
        n_pairs_false=pairs.false,
        shuffled_recall=n_shuffled / n_planted if n_planted else None,
        floors=floor,
        edges=edges,
    )


def _true(failure: _Failure, key: Key) -> Effect:
    """The exact effect; a feature that only another passing sample has does nothing when ablated."""
    return failure.true.get(key, Effect(0.0, None))


def _gap(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Largest difference over the pairs of which both sides were measured."""
    gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return round(max(gaps), 4) if gaps else None


def _effect(node: Node) -> float:
    """The larger of a node's exact effects, nats."""
    return max(abs(node.confirmed_nats or 0.0), abs(node.contrast_nats or 0.0))


def _n_recalled(failures: Sequence[_Failure], wanted: Callable[[Cause], bool]) -> tuple[int, int]:
    """Wanted planted nodes, and those certified with an effect of the kind that the wiring says."""
    n = n_recalled = 0
    for key, cause, nodes in ((k, c, f.nodes) for f in failures for k, c in f.planted.items()):
        if wanted(cause):
            node = nodes.get(key)
            measured = getattr(node, _MEASURED[cause.baseline], None)
            n += 1
            n_recalled += abs(measured or 0.0) >= MINIMUM_NATS
    return n, n_recalled


_MEASURED = {"ablation": "confirmed_nats", "contrast": "contrast_nats"}


def _correlates(compiled: Compiled) -> set[int]:
    names = [n for w in compiled.wiring.correlates for n in (w, f"moved:{w}")]
    return {compiled.features[n] for n in names}


_ESTIMATES: dict[_Name, tuple[str, str]] = {
    "gradient": ("effect_nats", "ablation"),
    "gradient_frozen_scales": ("estimate_frozen_nats", "ablation"),
    "gradient_contrast": ("estimate_contrast_nats", "contrast"),
}
"""Estimator → (a node's field, the exact effect it estimates)."""


def _estimator(name: _Name, failures: Sequence[_Failure]) -> EstimatorFigures:
    field, kind = _ESTIMATES[name]
    correlations, large = [], []
    for f in failures:
        pairs = [
            ((getattr(f.nodes[k], field) or 0.0) if k in f.nodes else 0.0, getattr(e, kind))
            for k, e in sorted(f.true.items())
            if getattr(e, kind) is not None
        ]
        rounded = [(round(a / TOLERANCE_NATS), round(b / TOLERANCE_NATS)) for a, b in pairs]
        correlations.append(stats.spearman([a for a, _ in rounded], [b for _, b in rounded]))
        large += [(a, b) for a, b in pairs if abs(b) >= MINIMUM_NATS]
    known = [c for c in correlations if c is not None]
    n_wrong = sum(a * b < 0 and abs(a) > TOLERANCE_NATS for a, b in large)
    n_close = sum(a * b > 0 and abs(a) >= abs(b) / 10 for a, b in large)
    return EstimatorFigures(
        estimator=name,
        rank_correlation=round(fmean(known), 4) if known else None,
        n=len(large),
        n_sign_errors=n_wrong,
        n_weak=len(large) - n_wrong - n_close,
    )


class _PairCount(NamedTuple):
    """Redundant pairs in the failures that were searched for them."""

    planted: int
    true: int
    found: int
    false: int


def _pairs(observed: Observed, nodes: Sequence[dict[Key, Node]]) -> _PairCount:
    n_planted = n_true = n_found = n_false = 0
    for case, own in zip(observed.cases[:N_PAIR_CASES], nodes, strict=False):
        stand_ins = [k for k, c in planted_nodes(observed, case).items() if not c.alone]
        planted = {frozenset((a, b)) for a in stand_ins for b in stand_ins if a.hook == b.hook and a != b}
        true = {
            frozenset((r.first, r.second))
            for sae in observed.compiled.saes.values()
            for r in redundant_pairs(observed.compiled.model, case, sae, MINIMUM_NATS)
        }
        key_of = {n.id: k for k, n in own.items()}
        found = {frozenset((k, key_of[other])) for k, n in own.items() for other in n.redundant_with}
        n_planted += len(planted)
        n_true += len(planted & true)
        n_found += len(planted & found)
        n_false += len(found - planted)
    return _PairCount(n_planted, n_true, n_found, n_false)
