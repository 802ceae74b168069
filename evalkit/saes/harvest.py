"""Activations of a model at several hooks, harvested block by block while another thread trains.

1. Chunks of a block are sorted by length and run in small batches, padded on the right (a causal model's
   earlier positions do not see padding, so no mask is needed).
2. The forward stops after the last hook; the head is never computed.
3. In bfloat16 the matrix products are rounded while the residual stream stays in float32.
4. One worker thread harvests ahead of the consumer; blocks arrive in order.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evalkit.errors import SaeError
from evalkit.saes.corpus import Chunk

MOST_AHEAD = 4  # chosen: evens out blocks of unlike length; more would not make either thread faster

T = TypeVar("T")


class _Stop(Exception):
    """Ends a forward after the last hook."""


def residual_block(model: nn.Module, hook: str) -> nn.Module:
    """The module whose output is the residual stream at `hook` (`layers.16`, or with a path before it)."""
    match = re.fullmatch(r"((?:[a-z_]+\.)*)layers\.(\d+)", hook)
    if match is None:
        raise SaeError(f"hook '{hook}': not of the form layers.N: name a block, counted from 0")
    prefix, number = match.groups()
    names = [f"{prefix}{stem}.{number}" for stem in ("layers", "h", "blocks", "layer")]
    module: nn.Module
    for name, module in model.named_modules():
        if any(name == wanted or name.endswith(f".{wanted}") for wanted in names):
            return module
    raise SaeError(f"hook '{hook}': the model has no such block: choose a lower number")


class ChunkStreams(NamedTuple):
    """The residual stream of one chunk at every hook, all positions."""

    chunk: Chunk
    streams: dict[str, Float[Tensor, "pos d_model"]]


def chunk_streams(
    model: nn.Module,
    chunks: Sequence[Chunk],
    hooks: Sequence[str],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
    tokens_per_batch: int = 2048,
) -> Iterator[ChunkStreams]:
    """Residual stream at each hook, chunk by chunk, longest chunks first."""
    seen: dict[str, Tensor] = {}
    blocks = {hook: residual_block(model, hook) for hook in hooks}
    order = {module: place for place, module in enumerate(model.modules())}
    last = max(blocks, key=lambda hook: order[blocks[hook]])

    def recorder(hook: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[hook] = output if isinstance(output, Tensor) else output[0]
            if hook == last:
                raise _Stop

        return record

    for batch in batches(chunks, tokens_per_batch):
        handles = [block.register_forward_hook(recorder(hook)) for hook, block in blocks.items()]
        try:
            low = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
            with torch.no_grad(), low, contextlib.suppress(_Stop):
                model(padded(batch), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        for row, chunk in enumerate(batch):
            yield ChunkStreams(chunk, {hook: seen[hook][row, : len(chunk.tokens)].float() for hook in hooks})


def harvest(
    model: nn.Module,
    chunks: Sequence[Chunk],
    hooks: Sequence[str],
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> dict[str, Float[Tensor, "pos d_model"]]:
    """Residual stream at each hook over the kept positions of `chunks`, longest chunks first.

    Written in place: beside the block itself stands only the batch under way.
    """
    n_positions = sum(max(0, len(chunk.tokens) - max(chunk.first, 1)) for chunk in chunks)
    block: dict[str, Tensor] = {}
    at = 0
    for chunk, streams in chunk_streams(model, chunks, hooks, dtype=dtype):
        if not block:
            block = {hook: torch.empty(n_positions, streams[hook].shape[1]) for hook in hooks}
        kept = {hook: streams[hook][max(chunk.first, 1) :] for hook in hooks}
        for hook in hooks:
            block[hook][at : at + len(kept[hook])] = kept[hook]
        at += len(kept[hooks[0]])
    return block


def blocks_ahead(block_bytes: int, max_bytes: int) -> int:
    """How many blocks may wait beside the one in training and the one being made; 0: none is made ahead.

    Raises:
        SaeError: not even one block fits.
    """
    n_blocks = max_bytes // block_bytes
    if n_blocks == 0:
        raise SaeError(
            f"the stream's buffer: one block takes up to {-(-block_bytes // 2**20)} MiB, and "
            f"{max_bytes // 2**20} MiB were allowed: allow more, or read fewer hooks at once"
        )
    return min(max(n_blocks - 2, 0), MOST_AHEAD)


def padded(batch: Sequence[Chunk]) -> Int[Tensor, "batch pos"]:
    """Token ids, padded on the right with id 0."""
    width = max(len(chunk.tokens) for chunk in batch)
    return torch.tensor([[*chunk.tokens, *[0] * (width - len(chunk.tokens))] for chunk in batch])


def batches(chunks: Sequence[Chunk], tokens_per_batch: int) -> Iterator[list[Chunk]]:
    """Chunks of like length together, longest first."""
    batch: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: -len(chunk.tokens)):
        if batch and len(batch[0].tokens) * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, made by a worker thread up to `depth` ahead of the consumer.

    A consumer that lets go of an item before it asks for the next keeps at most `depth` + 2 of them alive:
    its own, the waiting ones, and the one being made. With `depth` 0 there is no worker and only its own.
    """
    if depth == 0:
        yield from items
        return
    waiting: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stopped = threading.Event()
    end = object()

    def put(item: object) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
                del item
            put(end)
        except BaseException as error:  # handed to the consumer, who raises it
            put(_Failed(error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            item = waiting.get()
            if item is end:
                return
            if isinstance(item, _Failed):
                raise item.error
            yield item
            del item  # or it would live until the next one is there
    finally:
        stopped.set()
        worker.join()
