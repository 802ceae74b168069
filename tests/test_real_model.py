"""The default model with its shipped SAEs: real weights, real failures, one small audit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evalkit.attribution.capture import decomposed_positions
from evalkit.models.cache import Step
from evalkit.models.resolve import resolve_model
from evalkit.models.text import TextModel, open_text_model
from evalkit.planning import Options
from evalkit.records import ChatMessage, Results, Sample
from evalkit.runner import audit
from evalkit.saes import catalogue
from evalkit.saes.loaders import load_sae
from evalkit.verify import verify_run

pytestmark = pytest.mark.slow
MODEL = "smollm2-135m-instruct-q4_1"
SUITE = Path(__file__).parent.parent / "suites" / "quickstart.yaml"


def silent(_step: Step) -> None:
    pass


def sample(text: str) -> Sample:
    return Sample(
        id="s", probe="p", failure_mode="f", group="g", messages=(ChatMessage(role="user", content=text),)
    )


@pytest.fixture(scope="module")
def model() -> TextModel:
    return open_text_model(resolve_model(MODEL))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("audit") / "run"
    done = audit(Options(suite=SUITE, out=folder, limit=3), silent)
    return folder, done.results


def test_the_model_is_named_as_the_quantised_file_it_is(model: TextModel) -> None:
    assert model.record.ref == MODEL
    assert model.record.quantisation == "Q4_1"
    assert model.record.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert model.record.upstream is not None and not model.record.upstream_verified


def test_margins_are_the_same_at_batch_1_and_16(model: TextModel) -> None:
    texts = [f"What is the capital of country number {n}? {'Please. ' * (n % 5)}" for n in range(16)]
    prompts = [model.encode(sample(t)).ids for t in texts]
    answers = [(model.encode_answer("Paris, I think"), model.encode_answer("Lyon"))] * 16
    with torch.no_grad():
        together = model.log_p(model.read(prompts), answers)
        alone = torch.cat([model.log_p(model.read([p]), [a]) for p, a in zip(prompts, answers, strict=True)])
    margins = [(x[:, 0] - x[:, 1]) for x in (together, alone)]
    assert (margins[0] - margins[1]).abs().max() < 1e-4


def test_the_attention_sink_is_not_decomposed(model: TextModel) -> None:
    """The first token's stream is many times the median norm; no SAE was trained on such vectors."""
    prompt = model.encode(sample("What is the capital of France?"))
    with torch.no_grad():
        run = model.read([prompt.ids], ["layers.16"])
    stream = run.streams["layers.16"][0]
    norms = stream.norm(dim=-1)
    assert norms[0] > 20 * norms[1:].median()
    card = load_sae(catalogue.shipped()[f"{MODEL}/layers.16"], None).card
    for known in (card, None):
        kept = decomposed_positions(stream, known)
        assert not kept[0] and all(kept[1:])


def test_shipped_saes_belong_to_this_model_and_beat_a_random_one(model: TextModel) -> None:
    shipped = {n: p for n, p in catalogue.shipped().items() if n.startswith(MODEL)}
    assert len(shipped) >= 4
    assert sum(f.stat().st_size for p in shipped.values() for f in p.iterdir()) <= 60e6
    for name, path in shipped.items():
        card = load_sae(path, None, d_model=model.d_model, n_layers=model.n_layers).card
        assert card is not None and card.model_sha256 == model.record.sha256, name
        assert card.random_floor is not None
        assert card.quality.explained_variance is not None
        assert card.random_floor.explained_variance is not None
        assert card.quality.explained_variance > card.random_floor.explained_variance + 0.2, name


def test_every_failure_of_a_real_audit_is_attributed_and_certified(audited: tuple[Path, Results]) -> None:
    _, results = audited
    failures = [s for s in results.samples if s.outcome == "fail" and not s.control and s.validity == "valid"]
    assert len(failures) >= 4
    for failure in failures:
        attribution = failure.attribution
        assert attribution is not None and attribution.no_attribution is None
        assert sum(n.confirmed_nats is not None for n in attribution.nodes) == 12
        assert 0 in attribution.excluded_positions
        assert attribution.identity_gap_nats is not None and attribution.identity_gap_nats < 1e-2


def test_a_real_audit_verifies_and_renders(audited: tuple[Path, Results]) -> None:
    folder, _ = audited
    assert verify_run(folder).level == 2
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF-")
    assert (folder / "report.html").stat().st_size > 100_000
