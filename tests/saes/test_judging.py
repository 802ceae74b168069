"""The card's figures against plain re-computations, and feature evidence that can be traced to its text."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.corpus import Chunk
from evalkit.saes.feature_evidence import FILE, WINDOW, collect_evidence, read_evidence, write_evidence
from evalkit.saes.floors import frozen_random, residual_coordinates
from evalkit.saes.harvest import ChunkStreams, chunk_streams, harvest
from evalkit.saes.judging import Limits, evaluate

HOOK = "layers.1"
EVERYWHERE = Limits(norm_limit=1e9)


@pytest.fixture(scope="module")
def model(llama_dir: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(llama_dir, dtype=torch.float32).eval()


def chunks(n: int = 6, length: int = 30) -> list[Chunk]:
    g = torch.Generator().manual_seed(0)
    return [
        Chunk(
            "even" if i % 2 == 0 else "odd",
            tuple(torch.randint(0, 250, (length - i,), generator=g).tolist()),
            1,
        )
        for i in range(n)
    ]


def streams(model: nn.Module, text: list[Chunk]) -> list[ChunkStreams]:
    return list(chunk_streams(model, text, [HOOK]))


def some_sae(model: nn.Module) -> Sae:
    """A random SAE: as good as any to check arithmetic with."""
    like = Sae("topk", HOOK, torch.zeros(32, 64), torch.zeros(64), torch.zeros(64, 32), torch.zeros(32), k=4)
    return frozen_random(like, 0, harvest(model, chunks(), [HOOK])[HOOK])


def test_figures_equal_a_plain_recomputation(model: nn.Module) -> None:
    sae = some_sae(model)
    judged = evaluate(model, {"sae": sae}, EVERYWHERE, streams(model, chunks()))["sae"]
    x = harvest(model, chunks(), [HOOK])[HOOK]
    z = sae.encode(x)
    error = (x - sae.decode(z)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert judged.quality.explained_variance == pytest.approx(1 - float(error), abs=1e-5)
    assert judged.quality.l0 == pytest.approx(4.0)
    assert judged.quality.dead_share == pytest.approx(float((~(z != 0).any(0)).float().mean()))
    dense = ((z != 0).float().mean(0) > 0.1).float().mean()
    assert 0 < float(dense) < 1
    assert judged.quality.dense_share == pytest.approx(float(dense))
    assert judged.quality.kl_nats is None, "no text for cross-entropy was given"
    assert judged.n_tokens == x.shape[0]
    assert judged.quality.ce_recovered_zero is None
    assert set(judged.by_source) == {"even", "odd"}


@torch.no_grad()
def test_cross_entropy_recovered_equals_a_run_with_the_stream_replaced(model: nn.Module) -> None:
    sae, text = some_sae(model), chunks(3, 20)
    limits = Limits(1e9, excluded_positions=(0, 5))
    judged = evaluate(model, {"sae": sae}, limits, streams(model, text), text)["sae"]
    mean = torch.cat(
        [harvest(model, [c], [HOOK])[HOOK][[i for i in range(len(c.tokens) - 1) if i != 4]] for c in text]
    ).mean(0)

    def ce(change: object) -> float:
        total = 0.0
        for chunk in text:
            ids = torch.tensor([chunk.tokens])

            def hook(_m: object, _i: object, output: torch.Tensor) -> torch.Tensor:
                new = change(output.clone())  # type: ignore[operator]
                new[:, [0, 5]] = output[:, [0, 5]]
                return new

            handle = model.model.layers[1].register_forward_hook(hook)  # type: ignore[union-attr,index]
            logits = model(ids).logits[0]
            handle.remove()
            total += float(F.cross_entropy(logits[1:-1], ids[0, 2:], reduction="sum"))
        return total

    clean, zero = ce(lambda x: x), ce(torch.zeros_like)
    flat, through = ce(lambda x: mean.expand_as(x).clone()), ce(lambda x: sae.decode_at(sae.encode(x), x))
    for found, floor in ((judged.quality.ce_recovered_zero, zero), (judged.quality.ce_recovered_mean, flat)):
        if floor > clean:
            assert found == pytest.approx((floor - through) / (floor - clean), abs=1e-3)
        else:
            assert found is None
    assert zero > clean or flat > clean
    assert judged.n_tokens_ce == sum(len(chunk.tokens) - 2 for chunk in text)


def test_a_lossless_coder_recovers_everything(model: nn.Module) -> None:
    coder = residual_coordinates(some_sae(model))
    quality = evaluate(model, {"identity": coder}, EVERYWHERE, streams(model, chunks()), chunks(2))[
        "identity"
    ].quality
    assert quality.explained_variance == pytest.approx(1.0)
    for recovered in (quality.ce_recovered_zero, quality.ce_recovered_mean):
        assert recovered is None or recovered == pytest.approx(1.0, abs=1e-3)


def test_positions_beyond_the_norm_limit_are_left_alone(model: nn.Module) -> None:
    x = harvest(model, chunks(), [HOOK])[HOOK]
    limit = float(x.norm(dim=-1).median())
    judged = evaluate(model, {"sae": some_sae(model)}, Limits(limit), streams(model, chunks()))["sae"]
    assert judged.n_tokens == int((x.norm(dim=-1) <= limit).sum())
    stream = torch.tensor([[100.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    assert Limits(2.0, (0,)).decomposed(stream).tolist() == [False, True, False]
    assert Limits(200.0, (0, 7)).decomposed(stream).tolist() == [False, True, True]


def test_no_position_within_the_limit_is_an_error(model: nn.Module) -> None:
    with pytest.raises(SaeError, match="no held-out position within the norm limit: give more text"):
        evaluate(model, {"sae": some_sae(model)}, Limits(0.0), streams(model, chunks()))


def test_coders_of_different_hooks_are_not_compared(model: nn.Module) -> None:
    sae = some_sae(model)
    other = Sae("topk", "layers.2", sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, k=4)
    with pytest.raises(SaeError, match=r"coders of one hook are compared, not of layers.1, layers.2"):
        evaluate(model, {"a": sae, "b": other}, EVERYWHERE, [])


def test_evidence_points_at_the_strongest_places(model: nn.Module, tmp_path: Path) -> None:
    sae, text = some_sae(model), chunks()
    made = collect_evidence(streams(model, text), sae, EVERYWHERE, lambda token: f"t{token}", "test text")
    write_evidence(made, tmp_path)
    evidence = read_evidence(tmp_path)
    assert evidence is not None
    x = {c.tokens: harvest(model, [c], [HOOK])[HOOK] for c in text}
    z = torch.cat([sae.encode(part) for part in x.values()])
    assert evidence.density == pytest.approx(((z != 0).float().mean(0)).tolist(), abs=1e-3)
    for feature in range(sae.d_sae):
        contexts = evidence.contexts(feature)
        peaks = [max(context.activations) for context in contexts]
        per_chunk = sorted((float(sae.encode(part)[:, feature].max()) for part in x.values()), reverse=True)
        expected = [peak for peak in per_chunk[:4] if peak > 0]
        assert sorted(peaks, reverse=True) == pytest.approx(expected, rel=1e-2)
        for context in contexts:
            assert len(context.tokens) == len(context.activations) <= 2 * WINDOW + 1


def test_the_same_evidence_gives_the_same_bytes(model: nn.Module, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made = collect_evidence(streams(model, chunks()), some_sae(model), EVERYWHERE, str, "test text")
        write_evidence(made, tmp_path / name)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_missing_evidence_is_none_and_damaged_evidence_an_error(tmp_path: Path) -> None:
    assert read_evidence(tmp_path) is None
    (tmp_path / FILE).write_bytes(b"not gzip")
    with pytest.raises(SaeError, match=r"features.json.gz: not readable as feature evidence"):
        read_evidence(tmp_path)
