"""Harvesting: the stream after the named block, unpadded, and a worker that keeps order."""

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from evalkit.errors import SaeError
from evalkit.saes.corpus import Chunk
from evalkit.saes.harvest import ahead, batches, blocks_ahead, chunk_streams, harvest, residual_block
from evalkit.saes.training import train
from evalkit.saes.training_config import SaeSpec, TrainingConfig

CHUNKS = [
    Chunk("a", tuple(range(3, 3 + n)), first) for n, first in ((5, 1), (9, 1), (2, 1), (9, 4), (7, 1))
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32).eval()


@torch.no_grad()
def reference(model: nn.Module, tokens: tuple[int, ...], block: int) -> torch.Tensor:
    """transformers' own hidden states, one sequence at a time: entry n + 1 is the stream after block n."""
    states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return states[block + 1][0]


def test_streams_are_those_after_the_block_whatever_the_padding(model: nn.Module) -> None:
    seen = 0
    for chunk, streams in chunk_streams(model, CHUNKS, ["layers.0", "layers.2"], tokens_per_batch=20):
        for block in (0, 2):
            expected = reference(model, chunk.tokens, block)
            torch.testing.assert_close(streams[f"layers.{block}"], expected, rtol=1e-4, atol=1e-4)
        seen += 1
    assert seen == len(CHUNKS)


def test_harvest_leaves_out_position_zero_and_what_a_chunk_excludes(model: nn.Module) -> None:
    kept = harvest(model, CHUNKS, ["layers.1"])["layers.1"]
    assert kept.shape[0] == sum(len(chunk.tokens) - chunk.first for chunk in CHUNKS)


def test_hooks_are_taken_off_again(model: nn.Module) -> None:
    before = [dict(module._forward_hooks) for module in model.modules()]
    harvest(model, CHUNKS, ["layers.1"])
    assert [dict(module._forward_hooks) for module in model.modules()] == before
    assert model(torch.tensor([[1, 2, 3]])).logits.shape[1] == 3


def test_harvesting_in_bfloat16_stays_close(model: nn.Module) -> None:
    exact = harvest(model, CHUNKS, ["layers.1"])["layers.1"]
    low = harvest(model, CHUNKS, ["layers.1"], dtype="bfloat16")["layers.1"]
    assert low.dtype == torch.float32
    assert float((low - exact).pow(2).sum() / exact.pow(2).sum()) < 0.01


def test_a_batch_holds_chunks_of_like_length_and_no_more_than_its_size() -> None:
    made = list(batches(CHUNKS, 20))
    assert sorted(chunk for batch in made for chunk in batch) == sorted(CHUNKS)
    assert all(len(batch) * max(len(c.tokens) for c in batch) <= 20 for batch in made)


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("block.3", "not of the form layers.N"),
        ("layers.99", "the model has no such block: choose a lower number"),
    ],
)
def test_a_hook_that_is_not_there_is_named(model: nn.Module, hook: str, message: str) -> None:
    with pytest.raises(SaeError, match=message):
        residual_block(model, hook)


def test_a_worker_keeps_the_order_and_works_ahead() -> None:
    made: list[int] = []

    def slow() -> Iterator[int]:
        for i in range(6):
            made.append(i)
            yield i

    stream = ahead(slow(), depth=2)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 3
    assert [0, *stream] == list(range(6))


def test_an_error_of_the_worker_reaches_the_consumer() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise SaeError("the worker's own words")

    stream = ahead(broken())
    assert next(stream) == 1
    with pytest.raises(SaeError, match="the worker's own words"):
        next(stream)


def test_a_consumer_that_stops_leaves_no_worker_behind() -> None:
    before = threading.active_count()
    stream = ahead(itertools.count())
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_more_is_held_than_the_buffer_was_told(tmp_path: Path) -> None:
    """Bytes of blocks alive at any time, while a slow trainer lets the worker run ahead as far as it may."""
    alive: set[int] = set()
    most = [0]

    def made() -> Iterator[dict[str, Tensor]]:
        for number in range(12):
            alive.add(number)
            most[0] = max(most[0], len(alive))
            x = torch.randn(256, 8, generator=torch.Generator().manual_seed(number))
            weakref.finalize(x, alive.discard, number)
            yield {"layers.0": x}
            del x

    block_bytes = 256 * 8 * 4
    for n_blocks in (1, 2, 3, 5):
        depth = blocks_ahead(block_bytes, n_blocks * block_bytes + 10)
        most[0] = 0
        config = TrainingConfig(n_tokens=256 * 12, batch=256)
        spec = SaeSpec(hook="layers.0", d_sae=16, k=2)
        train(
            lambda _, depth=depth: ahead(made(), depth),  # type: ignore[misc]
            [spec],
            tmp_path,
            config,
            progress=lambda _: time.sleep(0.02),
        )
        assert most[0] * block_bytes <= n_blocks * block_bytes + 10
        assert not alive
        assert (most[0] > 1) == (n_blocks >= 3), "with room for three, one is made while one trains"


def test_a_buffer_that_holds_no_block_is_refused() -> None:
    with pytest.raises(SaeError, match=r"one block takes up to 3 MiB, and 2 MiB were allowed: allow more"):
        blocks_ahead((2 << 20) + 1, 2 << 20)
    assert blocks_ahead(1, 1 << 30) == 4, "no further ahead than helps"
