"""The trainer: its hand-written sparse gradients, AuxK, resumption, and whether it finds what is there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evalkit.errors import SaeError
from evalkit.saes.coder import Sae
from evalkit.saes.sparse_ops import ByLatent, Chosen, largest, sparse_sum
from evalkit.saes.train_run import sae_of
from evalkit.saes.trainer import SaeTrainer
from evalkit.saes.training import CHECKPOINT, train
from evalkit.saes.training_config import SaeSpec, TrainingConfig, learning_rate

D, N_FEATURES, K = 24, 60, 4
ARCHITECTURES = ("topk", "batchtopk", "matryoshka")


def dictionary(n: int = N_FEATURES) -> Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(3)), dim=-1)


def planted(
    start: int, *, size: int = 2048, hooks: tuple[str, ...] = ("layers.0",)
) -> Iterator[dict[str, Tensor]]:
    """Blocks of sums of a few true directions, each a function of its number alone."""
    number = start
    while True:
        block = {}
        for offset, hook in enumerate(hooks):
            generator = torch.Generator().manual_seed(1000 * number + offset)
            on = torch.rand(size, N_FEATURES, generator=generator) < 2.0 / N_FEATURES
            amount = 1 + torch.rand(size, N_FEATURES, generator=generator)
            block[hook] = (on * amount) @ dictionary() * 5 + 3
        yield block
        number += 1


def trainer(architecture: str = "topk", **changes: object) -> tuple[SaeTrainer, Tensor]:
    config = TrainingConfig(**{"n_tokens": 10_000, "aux_every": 1, "k_aux": 7, **changes})  # type: ignore[arg-type]
    first = next(planted(0))["layers.0"]
    spec = SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=K, architecture=architecture)  # type: ignore[arg-type]
    made = SaeTrainer(spec, config, first)
    made.W_enc += 0.1 * torch.randn(made.W_enc.shape, generator=torch.Generator().manual_seed(5))
    made.b_enc += 0.1 * torch.randn(made.b_enc.shape, generator=torch.Generator().manual_seed(6))
    return made, first[:64] * made.scale


def dense_loss(made: SaeTrainer, x: Tensor, parameters: list[Tensor], dead: Tensor | None) -> Tensor:
    """The loss of `SaeTrainer.gradients`, written with dense tensors for autograd."""
    W_enc, b_enc, W_dec, b_dec = parameters
    pre = (x - b_dec) @ W_enc.T + b_enc
    kept = pre.topk(K, dim=-1).values.min(-1, keepdim=True).values
    if made.spec.architecture != "topk":
        kept = pre.flatten().topk(K * x.shape[0]).values.min()
    z = (pre * (pre >= kept)).relu()
    errors = [x - (z[:, :end] @ W_dec[:end] + b_dec) for end in made.spec.prefixes]
    loss = torch.stack([e.pow(2).sum() / (x.shape[0] * D) for e in errors]).mean()
    if dead is not None:
        target = errors[-1].detach()
        aux_pre = ((x - b_dec.detach()) @ W_enc.T + b_enc).masked_fill(~dead, -torch.inf)
        values, indices = aux_pre.topk(min(7, int(dead.sum())), dim=-1)
        z = torch.zeros_like(pre).scatter(-1, indices, values.relu())
        loss = loss + made.config.aux_coefficient * (target - z @ W_dec).pow(2).sum() / target.pow(2).sum()
    return loss


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("n_dead", [0, 3, 40])
def test_sparse_gradients_equal_dense_autograd(n_dead: int, architecture: str) -> None:
    made, x = trainer(architecture)
    made.silent_tokens[:n_dead] = made.config.dead_after_tokens
    parameters = [p.clone().requires_grad_() for p in made.parameters]
    dense_loss(made, x, parameters, made.dead if n_dead else None).backward()
    found = made.gradients(x)
    for gradient, parameter in zip(found[:4], parameters, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)
    along = torch.linalg.vecdot(found.W_dec, made.W_dec)
    torch.testing.assert_close(found.along, along, rtol=1e-4, atol=1e-7)


def test_a_batch_holds_k_latents_per_position_on_average_however_they_crowd() -> None:
    made, _ = trainer("batchtopk")
    pre = torch.rand(8, N_FEATURES, generator=torch.Generator().manual_seed(1))
    pre[2] += 10  # one position wants them all: more than the spare candidates hold
    chosen = made.choose(pre)
    on = torch.zeros_like(pre).bool()
    on[chosen.rows, chosen.indices] = True
    expected = torch.zeros_like(pre).flatten()
    expected[pre.flatten().topk(8 * K).indices] = 1
    assert torch.equal(on, expected.reshape(pre.shape).bool())
    assert chosen.bounds.tolist() == [0, *on.sum(1).cumsum(0).tolist()]


def test_the_first_latents_of_a_matryoshka_reconstruct_by_themselves(tmp_path: Path) -> None:
    config = TrainingConfig(
        n_tokens=100_000, batch=256, lr=3e-3, warmup_tokens=2_000, dead_after_tokens=5_000
    )
    x = next(planted(9_999))["layers.0"]

    def left(sae: Sae, n: int) -> float:
        z = sae.encode(x)
        error = x - (z[:, :n] @ sae.W_dec[:n] + sae.b_dec)
        return float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum())

    found = {}
    for architecture in ("batchtopk", "matryoshka"):
        spec = SaeSpec(hook="layers.0", d_sae=128, k=K, architecture=architecture)  # type: ignore[arg-type]
        found[architecture] = sae_of(train(planted, [spec], tmp_path / architecture, config)[0])
    assert left(found["matryoshka"], 64) < 0.8 * left(found["batchtopk"], 64)
    assert left(found["matryoshka"], 128) < 0.3


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_the_learned_threshold_keeps_about_k_latents_on_unseen_data(
    architecture: str, tmp_path: Path
) -> None:
    config = TrainingConfig(n_tokens=100_000, batch=256, lr=3e-3, warmup_tokens=2_000)
    spec = SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=2, architecture=architecture)  # type: ignore[arg-type]
    sae = sae_of(train(planted, [spec], tmp_path, config)[0])
    l0 = float((sae.encode(next(planted(9_999))["layers.0"]) != 0).float().sum(-1).mean())
    assert sae.architecture == "batchtopk"
    assert l0 == pytest.approx(2, rel=0.15)


def test_the_gradient_of_auxk_reaches_the_encoder_of_dead_latents() -> None:
    made, x = trainer()
    made.b_enc[:10] = -100.0
    assert not made.gradients(x).W_enc[:10].any()
    made.b_enc[:10] = 0.0
    made.silent_tokens[:10] = made.config.dead_after_tokens
    with_aux = made.gradients(x)
    made.silent_tokens[:10] = 0
    without = made.gradients(x)
    moved = (with_aux.W_enc - without.W_enc)[:10].norm(dim=-1)
    assert int((moved > 0).sum()) >= 8
    assert (with_aux.b_enc - without.b_enc)[:10].any()
    assert not (with_aux.W_enc - without.W_enc)[10:].any()


def test_gathered_sums_and_products_equal_their_dense_forms() -> None:
    table, rows = torch.randn(9, D), torch.randn(5, D)
    indices = torch.randint(0, 9, (5, 3))
    weights = torch.randn(5, 3)
    chosen = Chosen.of(indices)
    dots = (table[indices] * rows[:, None]).sum(-1)
    by_latent = ByLatent(chosen, len(table))
    torch.testing.assert_close(by_latent.dots(table, rows), dots.flatten())
    dense = torch.zeros(5, 9).index_put((chosen.rows, chosen.indices), weights.flatten(), accumulate=True)
    torch.testing.assert_close(by_latent.outer(weights.flatten(), rows), dense.T @ rows)
    torch.testing.assert_close(by_latent.total(weights.flatten()), dense.sum(0))
    expected = (table[indices] * weights[..., None]).sum(1)
    torch.testing.assert_close(sparse_sum(table, chosen, weights.flatten()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("width", "k"), [(9216, 32), (640, 32), (61, 5), (80, 80), (70_000, 3)])
def test_the_largest_of_each_row_are_those_that_topk_finds(width: int, k: int, dtype: torch.dtype) -> None:
    scores = torch.randn(5, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    scores[1] = -scores[1].abs()  # none above zero
    scores[2, 7:] = -1.0  # fewer than k above zero
    scores[3] = scores[3].round()  # many equal ones
    found = largest(scores, k)
    assert all(len(set(row)) == k for row in found.tolist())
    values = scores.gather(1, found).relu().sort().values
    assert torch.equal(values, scores.topk(k).values.relu().sort().values)


def test_a_planted_dictionary_is_recovered(tmp_path: Path) -> None:
    config = TrainingConfig(
        n_tokens=200_000, batch=256, lr=3e-3, warmup_tokens=2_000, dead_after_tokens=5_000
    )
    (found,) = train(planted, [SaeSpec(hook="layers.0", d_sae=2 * N_FEATURES, k=K)], tmp_path, config)
    cosine = dictionary() @ found.W_dec.T
    assert float((cosine.max(dim=1).values > 0.95).float().mean()) > 0.9
    shuffled = dictionary()[:, torch.randperm(D, generator=torch.Generator().manual_seed(0))]
    assert float(((shuffled @ found.W_dec.T).max(dim=1).values > 0.95).float().mean()) < 0.1


def test_the_folded_sae_acts_on_the_raw_stream() -> None:
    made, x = trainer()
    folded = made.folded()
    raw = x / made.scale
    pre = (raw - folded.b_dec) @ folded.W_enc + folded.b_enc
    values, indices = pre.topk(K, dim=-1)
    output = sparse_sum(folded.W_dec, Chosen.of(indices), values.relu().flatten()) + folded.b_dec
    error = made.gradients(x).error / made.scale
    torch.testing.assert_close(raw - output, error, rtol=1e-4, atol=1e-4)


def test_decoder_rows_stay_unit_vectors() -> None:
    made, x = trainer()
    for _ in range(5):
        made.step(x / made.scale, 1e-2)
    torch.testing.assert_close(made.W_dec.norm(dim=-1), torch.ones(N_FEATURES))


def test_positions_of_enormous_norm_are_not_trained_on(tmp_path: Path) -> None:
    def with_sinks(start: int) -> Iterator[dict[str, Tensor]]:
        for block in planted(start):
            sinks = torch.full((8, D), 4000.0)
            yield {hook: torch.cat([sinks, x]) for hook, x in block.items()}

    spec = SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=K)
    config = TrainingConfig(n_tokens=4_000, batch=256)
    clean = train(planted, [spec], tmp_path / "a", config)[0]
    sinks = train(with_sinks, [spec], tmp_path / "b", config)[0]
    assert sinks.norm_limit < 4000
    assert sinks.n_tokens == clean.n_tokens
    assert float(sinks.b_dec.abs().max()) < 20


class _Interrupted(Exception):
    pass


def test_a_resumed_run_equals_one_that_was_never_interrupted(tmp_path: Path) -> None:
    hooks = ("layers.0", "layers.1")
    specs = [SaeSpec(hook=hook, d_sae=N_FEATURES, k=K, seed=seed) for hook in hooks for seed in (0, 1)]
    specs.append(SaeSpec(hook=hooks[0], d_sae=N_FEATURES, k=K, seed=2, architecture="batchtopk"))
    config = TrainingConfig(
        n_tokens=12_000, batch=200, warmup_tokens=1_000, dead_after_tokens=500, checkpoint_every_tokens=3_000
    )

    def stream(start: int) -> Iterator[dict[str, Tensor]]:
        return planted(start, size=1000, hooks=hooks)

    def broken(start: int) -> Iterator[dict[str, Tensor]]:
        for number, block in enumerate(stream(start)):
            if start + number == 7:
                raise _Interrupted
            yield block

    whole = train(stream, specs, tmp_path / "whole", config)
    with pytest.raises(_Interrupted):
        train(broken, specs, tmp_path / "broken", config)
    resumed = train(stream, specs, tmp_path / "broken", config, resume=True)
    for a, b in zip(whole, resumed, strict=True):
        assert a.n_steps == b.n_steps
        assert a.norm_limit == b.norm_limit
        assert a.threshold == b.threshold
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not torch.equal(whole[0].W_dec, whole[1].W_dec)


def test_without_resume_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    spec = SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=K)
    config = TrainingConfig(n_tokens=4_000, batch=256)
    first = train(planted, [spec], tmp_path, config)[0]
    again = train(planted, [spec], tmp_path, config)[0]
    assert torch.equal(first.W_dec, again.W_dec)


def test_a_checkpoint_of_other_saes_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig(n_tokens=2_000, batch=256)
    train(planted, [SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=K)], tmp_path, config)
    assert (tmp_path / CHECKPOINT).is_file()
    with pytest.raises(SaeError, match="written for other SAEs: use the same hooks"):
        train(planted, [SaeSpec(hook="layers.0", d_sae=32, k=K)], tmp_path, config, resume=True)


def test_a_text_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    def short(start: int) -> Iterator[dict[str, Tensor]]:
        yield from [next(planted(start))]

    config = TrainingConfig(n_tokens=100_000, batch=256)
    with pytest.raises(SaeError, match="the text ended after 2048 positions; training asks for 100000"):
        train(short, [SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=K)], tmp_path, config)


def test_the_learning_rate_warms_up_stays_and_decays_to_zero() -> None:
    config = TrainingConfig(n_tokens=1_000, batch=10, lr=2.0, warmup_tokens=100, decay_share=0.5)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 300) == 2.0
    assert learning_rate(config, 750) == pytest.approx(1.0)
    assert learning_rate(config, 1_000) == 0.0


def test_looking_for_latents_in_bfloat16_trains_as_well(tmp_path: Path) -> None:
    scores: dict[str, float] = {}
    for dtype in ("float32", "bfloat16"):
        config = TrainingConfig(
            n_tokens=60_000, batch=256, lr=3e-3, warmup_tokens=2_000, encoder_dtype=dtype,  # type: ignore[arg-type]
        )  # fmt: skip
        last: list[float] = []
        train(
            planted,
            [SaeSpec(hook="layers.0", d_sae=N_FEATURES, k=K)],
            tmp_path / dtype,
            config,
            progress=lambda p, last=last: last.append(next(iter(p.saes.values())).explained_variance),  # type: ignore[misc]
        )
        scores[dtype] = last[-1]
    assert scores["bfloat16"] == pytest.approx(scores["float32"], abs=0.02)
