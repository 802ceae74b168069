"""Shared edges against full forwards, and where modes measure them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_attribute import HOOKS, SPEC, topk  # type: ignore[import-not-found]
from test_modes import QUESTIONS, pair_of_samples  # type: ignore[import-not-found]

from evalkit.attribution.attribute import Coders, make_bench, tabulate_all
from evalkit.attribution.cases import Case, Contrast
from evalkit.attribution.mode_edges import measure_shared_edges
from evalkit.circuits import shared_id, split_shared
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.probes.choice import ChoiceProbe
from evalkit.saes.coder import Sae
from evalkit.scorers import make_scorer

SAES: dict[str, Sae] = {h: topk(h, n) for n, h in enumerate(HOOKS)}


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(llama_dir)))


def test_shared_edges_equal_full_forwards(model: TextModel) -> None:
    probe = ChoiceProbe(SPEC, make_scorer(None, "choice"))
    samples = [pair_of_samples(n, q)[0] for n, q in enumerate(QUESTIONS[:2])]
    cases = []
    for s in samples:
        pair = probe.pair(model, s, None, None)
        assert pair is not None
        cases.append(Case(s, model.encode(s), pair, Contrast("ablation", ())))
    bench = make_bench(model, probe, cases, {}, SAES, 0)
    nodes = []
    for table in tabulate_all(bench, SAES)[0]:  # two active features per role and hook
        roles = cases[0].prompt.roles
        names = [
            shared_id(table.hook, roles[p], int(f))
            for p, f in zip(table.position, table.feature, strict=True)
        ]
        for role in dict.fromkeys(roles):
            nodes += [n for n in dict.fromkeys(names) if split_shared(n)[1] == role][:2]
    lines = measure_shared_edges("f:p:mode", bench, [0, 1], Coders("none", None, SAES), nodes)
    sources = {n for n in nodes if n.startswith(HOOKS[0])}
    assert {(r.sample, r.nodes[0]) for r in lines} == {(s.id, n) for s in samples for n in sources}
    moved = 0
    for line in lines:
        n = next(n for n, s in enumerate(samples) if s.id == line.sample)
        clean, after = (streams(model, cases[n], line.nodes[0] if off else None) for off in (False, True))
        for target, found in line.targets.items():
            assert found == pytest.approx(
                (read(cases[n], clean, target), read(cases[n], after, target)), abs=2e-3
            )
            moved += abs(found[0] - found[1]) > 1e-2
    assert moved > 10


def places(case: Case, node: str) -> list[int]:
    return [p for p, r in enumerate(case.prompt.roles) if r == split_shared(node)[1] and p > 0]


def read(case: Case, stream: torch.Tensor, node: str) -> float:
    hook, _, feature = split_shared(node)
    return sum(float(SAES[hook].encode(stream[p])[feature]) for p in places(case, node))


def streams(model: TextModel, case: Case, source: str | None) -> torch.Tensor:
    """The stream at the second hook; `source` zeroed at the first by two dense decodes."""
    kept: list[torch.Tensor] = []

    def zero(_m: object, _i: object, x: torch.Tensor) -> torch.Tensor:
        if source is None:
            return x
        sae, feature = SAES[HOOKS[0]], split_shared(source)[2]
        z = sae.encode(x)
        gone = z.clone()
        gone[0, places(case, source), feature] = 0.0
        return x + sae.decode(gone) - sae.decode(z)

    handles = [
        model.blocks[model.layer_of(HOOKS[0])].register_forward_hook(zero),
        model.blocks[model.layer_of(HOOKS[1])].register_forward_hook(lambda _m, _i, x: kept.append(x[0])),
    ]
    with torch.no_grad():
        model.module(torch.tensor([case.prompt.ids]))
    for handle in handles:
        handle.remove()
    return kept[0]
