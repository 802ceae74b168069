"""Circuits of a run as figures: a failure's own nodes by position, a mode's shared features by role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median

from evalkit.records import Attribution, Circuit, Edge, Feature, Node, SampleResult
from evalkit.report import features, text
from evalkit.report.circuit_layout import Arc, Graph, Layer, Place, Vertex
from evalkit.report.circuit_svg import circuit_figure
from evalkit.report.nouns import Figure

N_VERTICES = 12
N_ARCS = 40
N_EXCLUDED = 3
_SOURCE = re.compile(r"^(?:(?P<hook>.+)/p(?P<at>\d+)/error|embedding/p(?P<token>\d+))$")

Known = Mapping[tuple[str, int], Feature]


def sample_figure(sample: SampleResult, nodes: Sequence[Node], known: Known) -> Figure:
    """The circuit of one failure; `nodes` ranked, the exactly measured first."""
    attribution = sample.attribution
    assert attribution is not None
    shown = list(nodes[:N_VERTICES])
    errors = error_shares(attribution)
    hooks = _by_depth({n.hook for n in shown} | set(errors))
    vertices = tuple(_vertex(node, known) for node in shown)
    arcs, key = _arcs(attribution.edges, shown, set(errors))
    name = text.name(sample.id)
    into = _into_margin(vertices, hooks)
    labels = _labels([(n.hook, n.feature) for n in shown], known)
    drawn = Graph(
        title=f"Circuit of {name}: {_size(vertices, hooks, arcs)}; {_strongest(vertices)}",
        margin=f"margin {text.nats(sample.margin_nats)} nats towards failure",
        layers=tuple(
            Layer(
                h, _hook(h), errors.get(h), f"error at {h}: {text.percent(errors.get(h))} of the whole effect"
            )
            for h in hooks
        ),
        places=_places(shown, attribution.excluded_positions),
        vertices=vertices,
        arcs=arcs + into,
        key=key,
    )
    return Figure(_caption(shown) + _lines(bool(arcs), into) + labels, circuit_figure(drawn))


def mode_figure(circuit: Circuit, failures: Sequence[SampleResult], known: Known) -> Figure:
    """The circuit that failures share, by role; error shares are medians over the attributed failures."""
    ranked = sorted(circuit.nodes, key=lambda n: (-abs(n.effect_nats), n.hook, n.feature, n.role))
    shown = ranked[:N_VERTICES]
    hooks = _by_depth({n.hook for n in shown})
    every = [error_shares(s.attribution) for s in failures if s.attribution and s.attribution.nodes]
    shares = {hook: [e[hook] for e in every if hook in e] for hook in hooks}
    errors = {hook: median(values) for hook, values in shares.items() if values}
    vertices = tuple(
        Vertex(
            n.id,
            n.hook,
            n.role,
            f"#{n.feature}",
            _words(known.get((n.hook, n.feature))),
            n.effect_nats,
            True,
            f"{features.feature_id(n.hook, n.feature)} at {text.name(n.role)}: mean effect "
            f"{text.nats(n.effect_nats)} nats; {_label(known.get((n.hook, n.feature)))}",
        )
        for n in shown
    )
    ids = {n.id for n in shown}
    edges = [e for e in circuit.edges if e.effect_nats is not None and {e.source, e.target} <= ids]
    ranked_edges = sorted(edges, key=lambda e: (-abs(e.effect_nats or 0.0), e.source, e.target))[:N_ARCS]
    names = {n.id: features.feature_id(n.hook, n.feature) for n in shown}
    arcs = tuple(
        Arc(
            e.source,
            e.target,
            e.effect_nats or 0.0,
            f"{names[e.source]} → {names[e.target]}: {text.nats(e.effect_nats)} nats",
        )
        for e in ranked_edges
    )
    roles = sorted({n.role for n in shown}, key=lambda r: (r == "final", r != "other", r))
    into = _into_margin(vertices, hooks)
    labels = _labels([(n.hook, n.feature) for n in shown], known)
    drawn = Graph(
        title=f"Circuit {text.name(circuit.id)}: {_size(vertices, hooks, arcs)}; {_strongest(vertices)}",
        margin="failure margin",
        layers=tuple(
            Layer(
                h,
                _hook(h),
                errors.get(h),
                f"error at {h}: {text.percent(errors.get(h))} of all effect, median over "
                f"{text.plural(len(shares[h]), 'failure')}",
            )
            for h in hooks
        ),
        places=tuple(Place(r, text.name(r, 32), "role", False, f"role {text.name(r)}") for r in roles),
        vertices=vertices,
        arcs=arcs + into,
        key=_left_out(len(ranked) - len(shown), len(circuit.edges) - len(arcs)),
    )
    words = (
        "Features shared by failures, by hook and role. The figure in a box is its mean effect on the margin."
    )
    return Figure(words + _lines(bool(arcs), into) + labels, circuit_figure(drawn))


def error_shares(attribution: Attribution) -> dict[str, float]:
    """Hook → the part of the whole estimated effect that its error nodes hold; sums to `error_share`.

    Only the strongest features are recorded, but every error node is: the share of all errors is known,
    and each hook's part of it follows.
    """
    by_hook: dict[str, float] = {}
    for error in attribution.errors:
        by_hook[error.hook] = by_hook.get(error.hook, 0.0) + abs(error.effect_nats)
    total = sum(by_hook.values())
    if attribution.error_share is None or total == 0.0:
        return {}
    return {hook: attribution.error_share * value / total for hook, value in by_hook.items()}


def _vertex(node: Node, known: Known) -> Vertex:
    feature = known.get((node.hook, node.feature))
    exact = node.confirmed_nats is not None
    about = (
        f"{features.feature_id(node.hook, node.feature)} at {node.position} {text.token(node.token)}, "
        f"{text.name(node.role)}: activation {text.number(node.activation, 2)}; effect on the margin in "
        f"nats: estimate {text.nats(node.effect_nats)}, exact ablation {text.nats(node.confirmed_nats)}, "
        f"exact move to the contrast {text.nats(node.contrast_nats)}; "
        f"{_label(feature)}"
    )
    return Vertex(
        node.id,
        node.hook,
        str(node.position),
        f"#{node.feature}",
        f"@{node.position} {_words(feature)}",
        node.confirmed_nats if exact else node.effect_nats,
        exact,
        about,
    )


def _words(feature: Feature | None) -> str:
    """A feature in few words: its label in quotes, else the token at which it fires most."""
    if feature and feature.label:
        return f"“{text.name(feature.label, 40)}”"
    contexts = [c for c in feature.top_contexts if c.activations] if feature else []
    if not contexts:
        return ""
    best = max(contexts, key=lambda c: max(c.activations))
    return f"on {text.token(best.tokens[best.activations.index(max(best.activations))])}"


def _label(feature: Feature | None) -> str:
    if feature is None:
        return "not described"
    return features.label_words(feature.label, feature.label_source, feature.label_score)


def _labels(keys: Sequence[tuple[str, int]], known: Known) -> str:
    """Source and score of every label in the figure: none stands without them."""
    found = [known[key] for key in dict.fromkeys(keys) if key in known and known[key].label]
    words = []
    for feature in found:
        score = feature.label_score
        fit = "detection not measured"
        if score is not None and score.balanced_accuracy is not None:
            fit = f"{text.number(score.balanced_accuracy, 2)}, n = {score.n_firing + score.n_other}"
        words.append(
            f"#{feature.feature} “{text.name(feature.label or '', 60)}” "
            f"({text.stated(feature.label_source)}; {fit})"
        )
    return f" Labels (source; detection as balanced accuracy): {'; '.join(words)}." if words else ""


def _places(nodes: Sequence[Node], excluded: Sequence[int]) -> tuple[Place, ...]:
    """Columns: the positions of the nodes, and the first runs of excluded positions, in order."""
    tokens = {n.position: text.token(n.token) for n in nodes}
    units = {n.unit for n in nodes} or {"token"}
    unit = "position" if units == {"token"} else text.words(sorted(units))
    found = [
        (at, Place(str(at), name, str(at), False, f"{unit} {at}: {name}")) for at, name in tokens.items()
    ]
    for low, high in _runs([at for at in excluded if at not in tokens])[:N_EXCLUDED]:
        number = str(low) if low == high else f"{low}–{high}"
        about = f"{unit} {number}: excluded, not decomposed; its whole stream counts as error"
        found.append((low, Place(f"excluded {low}", "✕ excl.", number, True, about)))
    return tuple(place for _, place in sorted(found, key=lambda pair: pair[0]))


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive positions as (first, last)."""
    runs: list[tuple[int, int]] = []
    for at in sorted(positions):
        if runs and runs[-1][1] == at - 1:
            runs[-1] = (runs[-1][0], at)
        else:
            runs.append((at, at))
    return runs


def _arcs(
    edges: Sequence[Edge], nodes: Sequence[Node], error_hooks: set[str]
) -> tuple[tuple[Arc, ...], tuple[str, ...]]:
    """The strongest measured edges between what is shown, and what was left out."""
    by_id = {n.id: n for n in nodes}
    places = {n.position for n in nodes}
    arcs = []
    for edge in edges:
        source = _source(edge.source, set(by_id), places, error_hooks)
        if edge.effect_nats is None or source is None or edge.target not in by_id:
            continue
        about = (
            f"{_name(edge.source, by_id)} → {_name(edge.target, by_id)}: {text.nats(edge.effect_nats)} nats; "
            f"activation of the target: estimate {text.nats(edge.estimate_activation)}, measured "
            f"{text.nats(edge.confirmed_activation)}"
        )
        arcs.append(Arc(source, edge.target, edge.effect_nats, about))
    arcs.sort(key=lambda a: (-abs(a.effect), a.source, a.target))
    return tuple(arcs[:N_ARCS]), _left_out(0, len(edges) - len(arcs[:N_ARCS]))


def _source(ident: str, ids: set[str], places: set[int], error_hooks: set[str]) -> str | None:
    if ident in ids:
        return ident
    found = _SOURCE.match(ident)
    if found and found["hook"] in error_hooks:
        return f"error:{found['hook']}"
    if found and found["token"] and int(found["token"]) in places:
        return f"place:{int(found['token'])}"
    return None


def _name(ident: str, by_id: Mapping[str, Node]) -> str:
    node = by_id.get(ident)
    if node is None:
        return text.name(ident)
    return f"{features.feature_id(node.hook, node.feature)} {text.token(node.token, 12)}"


def _into_margin(vertices: Sequence[Vertex], hooks: Sequence[str]) -> tuple[Arc, ...]:
    """Lines from the last hook's features to the margin: above it no other feature stands between."""
    last = hooks[-1:] and hooks[-1]
    return tuple(
        Arc(v.id, "margin", v.effect, f"{v.name} → margin: {text.nats(v.effect)} nats")
        for v in vertices
        if v.hook == last and v.effect is not None and v.exact
    )


def _by_depth(hooks: set[str]) -> list[str]:
    def depth(hook: str) -> tuple[int, str]:
        tail = hook.rpartition(".")[2]
        return (int(tail) if tail.isdigit() else -1, hook)

    return sorted(hooks, key=depth)


def _hook(hook: str) -> str:
    if hook.startswith("layers."):
        return f"layer {hook.removeprefix('layers.')}"
    return text.name(hook.replace(".layers.", " "), 24)  # `encoder 3`


def _size(vertices: Sequence[Vertex], hooks: Sequence[str], arcs: Sequence[Arc]) -> str:
    n_vertices, n_hooks = text.plural(len(vertices), "feature"), text.plural(len(hooks), "hook")
    return f"{n_vertices} over {n_hooks}, {text.plural(len(arcs), 'edge')}"


def _strongest(vertices: Sequence[Vertex]) -> str:
    best = [f"{v.name} {text.nats(v.effect)}" for v in vertices[:3]]
    return f"strongest {text.words(best)} nats" if best else "no feature"


def _left_out(n_nodes: int, n_edges: int) -> tuple[str, ...]:
    out = [text.plural(n_nodes, "weaker node")] if n_nodes > 0 else []
    out += (
        [f"{text.plural(n_edges, 'edge')} (weaker, unmeasured, or from what is not shown)"]
        if n_edges > 0
        else []
    )
    return (f"Not drawn, in results.json: {text.words(out)}.",) if out else ()


def _caption(nodes: Sequence[Node]) -> str:
    words = "Features by hook and position; in each box its effect on the margin in nats"
    words += ", exact ablation" if all(n.confirmed_nats is not None for n in nodes) else (
        ", exact ablation or, with “?”, an estimate"
    )  # fmt: skip
    words += "; @ names the position, “on” the token at which the feature fires most anywhere."
    return words


def _lines(has_edges: bool, into: Sequence[Arc]) -> str:
    """What the lines are, if there are any."""
    words = "" if has_edges else " No edges were measured."
    return words + (" Lines into the margin: the last hook's features, by the same effect." if into else "")
