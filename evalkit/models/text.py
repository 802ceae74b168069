"""The text adapter: any causal language model of transformers, read, re-run and written from.

Three verbs, all on a left-padded batch:

1. `read` runs prompts once and keeps the last logits, the key–value cache and the streams asked for.
2. `rerun` recomputes only the blocks above a hook and the positions from `start` on, with the stream
   changed at one or more hooks; everything below and before is taken from the cache of `read`.
3. `log_p` and `write` continue from either: log-probabilities of given continuations, or new text.

A hook `layers.N` is the residual stream after block N (blocks count from 0). Blocks of transformers
≥ 5 return a tensor; older ones returned tuples, and both are handled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

from evalkit.errors import ModelError, SuiteError
from evalkit.models.adapter import NEURONS, Edit, is_neurons
from evalkit.models.resolve import ResolvedModel
from evalkit.records import ModelRecord, Sample

EMBEDDING = "embedding"
"""The stream that enters block 0: token embeddings, with positions where the model adds them."""


class Prompt(NamedTuple):
    """A rendered prompt as the model reads it."""

    ids: tuple[int, ...]
    text: str
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    """Per position: `final`, a span's name, `question` (the rest of the user's message), or `other`."""
    segments: None = None
    """Every token is a node's position of its own."""


class Run(NamedTuple):
    """The state after reading a batch of prompts; left-padded."""

    logits: Float[Tensor, "batch vocab"]
    """At the last position."""
    cache: DynamicCache
    mask: Bool[Tensor, "batch pos"]
    """False: padding."""
    ids: Int[Tensor, "batch pos"]
    streams: dict[str, Float[Tensor, "batch pos d_model"]]

    def offset(self, row: int) -> int:
        """Number of padding positions in front of `row`."""
        return int((~self.mask[row]).sum())

    def picked(self, index: Int[Tensor, "row"]) -> Run:
        """A state with the chosen rows, copied; streams are left behind."""
        return Run(self.logits[index], _select(self.cache, index), self.mask[index], self.ids[index], {})

    def detached(self) -> Run:
        """The same values without a graph."""
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        streams = {h: x.detach() for h, x in self.streams.items()}
        return self._replace(logits=self.logits.detach(), streams=streams)


class Written(NamedTuple):
    """One generated response."""

    text: str
    ids: tuple[int, ...]
    truncated: bool
    """True: it reached `max_new_tokens`."""


class TextModel:
    """A causal language model, its tokenizer, and the record that names it."""

    batch_rows = 32  # chosen: wider batches gain nothing on two cores and cost memory for the cache

    def __init__(self, module: nn.Module, tokenizer: Any, record: ModelRecord) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.record = record
        self.blocks = _find_blocks(module)
        self.n_layers = len(self.blocks)
        self.d_model = int(module.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
        self.device = next(module.parameters()).device
        self.eos_ids = _eos_ids(module, tokenizer)

    # -- hooks ------------------------------------------------------------------------------------

    def layer_of(self, hook: str) -> int:
        """Block index of a hook such as `layers.16`, or `neurons.16` (see `neuron_rows`).

        Raises:
            ModelError: the model has no such hook.
        """
        head, _, index = hook.rpartition(".")
        if head not in ("layers", NEURONS) or not index.isdigit() or int(index) >= self.n_layers:
            raise ModelError(
                f"{self.record.ref}: no hook '{hook}'; this model has layers.0 to layers.{self.n_layers - 1}"
            )
        return int(index)

    def neuron_rows(self, hook: str) -> Float[Tensor, "neuron d_model"] | None:
        """What each MLP neuron of the block that writes `hook` adds to the stream per unit of activation.

        The neurons are the inputs of the block's output projection; `neurons.N` is the hook where they stand.
        None: the block's MLP does not end in one projection that is added to the stream (Llama's `down_proj`,
        GPT-2's `c_proj`).
        """
        found = _projection(self.blocks[self.layer_of(hook)])
        if found is None:
            return None
        weight: Tensor = found.weight  # type: ignore[assignment]
        return weight.detach().T if isinstance(found, nn.Linear) else weight.detach()

    # -- text → tokens ----------------------------------------------------------------------------

    def encode(self, sample: Sample) -> Prompt:
        """The sample's prompt in this model's own format, with a role for each position."""
        text, special = self._prompt_text(sample)
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        ids = tuple(encoded["input_ids"])
        if not ids:
            raise SuiteError(f"sample '{sample.id}': the prompt has no tokens; write a longer prompt")
        limit = self.record.context_length
        if limit is not None and len(ids) >= limit:
            raise SuiteError(
                f"sample '{sample.id}': {len(ids)} prompt tokens leave no room in a context "
                f"of {limit}; shorten it"
            )
        roles = _roles(sample, text, encoded["offset_mapping"])
        return Prompt(ids, text, tuple(self.tokenizer.decode([i]) for i in ids), roles)

    def encode_answer(self, text: str, after: Prompt | None = None) -> tuple[int, ...]:
        """Tokens of a continuation; nothing is added and nothing is stripped.

        Args:
            after: the prompt that it continues. Both are read as one text, so that a tokenizer which marks
                the beginning of a text does not mark the answer's; where that would change the prompt's own
                tokens (a merge across the boundary), the answer is read alone.
        """
        alone = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if after is None or not text:
            return alone
        both = self.tokenizer([after.text, after.text + text], add_special_tokens=False)["input_ids"]
        before, whole = map(tuple, both)
        joined = whole[len(before) :]
        return joined if joined and whole[: len(before)] == before else alone

    def _prompt_text(self, sample: Sample) -> tuple[str, bool]:
        if sample.raw or not self.tokenizer.chat_template:
            return "\n".join(m.content for m in sample.messages), not sample.raw
        messages = [{"role": m.role, "content": m.content} for m in sample.messages]
        open_ended = messages[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not open_ended,
            continue_final_message=open_ended,
        )
        return text, False

    # -- running ----------------------------------------------------------------------------------

    def read(
        self, prompts: Sequence[tuple[int, ...]], hooks: Sequence[str] = (), *, grad: bool = False
    ) -> Run:
        """Run prompts once.

        Args:
            prompts: token ids per row; rows are left-padded to the longest.
            hooks: streams to keep.
            grad: keep the graph from the lowest hook on, so that margins can be differentiated with
                respect to the streams. Parameters are frozen in any case.
        """
        ids, mask = _left_pad(prompts, self.device)
        streams: dict[str, Tensor] = {}
        lowest = min((self.layer_of(h) for h in hooks), default=None)

        def keep(hook: str) -> Edit:
            def edit(x: Tensor) -> Tensor:
                if is_neurons(hook):  # their gradient follows from the stream's (`capture`)
                    streams[hook] = x.detach()
                    return x
                if grad and self.layer_of(hook) == lowest:
                    x = x.detach().requires_grad_()
                streams[hook] = x
                return x

            return edit

        with torch.set_grad_enabled(grad), ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(self._edited(hook, keep(hook)))
            logits, cache = self._forward(ids, mask, DynamicCache())
        return Run(logits[:, -1], cache, mask, ids, streams)

    def rerun(
        self,
        run: Run,
        rows: Sequence[int],
        hook: str,
        start: int,
        edits: Mapping[str, Edit],
        keep: Sequence[str] = (),
        until: str | None = None,
    ) -> Run:
        """Recompute the blocks above `hook` and the positions from `start` on, with `edits` applied.

        Args:
            run: a state of `read` that kept the stream at `hook`.
            rows: for each row of the new batch, the row of `run` it starts from.
            hook: the lowest hook that is changed.
            start: first (padded) position that is changed in any row.
            edits: hook → function of the stream at positions `start:`; no hook may lie below `hook`.
            keep: hooks whose streams (after edits, positions `start:`) are returned in `streams`.
            until: the last hook that is wanted; blocks above it are skipped and the logits mean nothing.
        """
        layer = self.layer_of(hook)
        index = torch.tensor(list(rows), device=self.device)
        stream = run.streams[f"layers.{layer}"].detach()[index, start:]
        clean = run.cache
        kept: dict[str, Tensor] = {}

        def reader(name: str) -> Edit:
            def edit(x: Tensor) -> Tensor:
                kept[name] = x
                return x

            return edit

        below = f"{NEURONS}.{layer}"
        if below in edits:  # the block itself is not run again: its neurons' change is added to what it wrote
            rows_out = self.neuron_rows(below)
            assert rows_out is not None
            neurons = run.streams[below][index, start:]
            stream = stream + (edits[below](neurons) - neurons) @ rows_out
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(_start_at(self.blocks, layer, stream))
            if until is not None:
                stack.enter_context(_skipped(self.blocks[self.layer_of(until) + 1 :]))
            for name, edit in edits.items():
                if name != below:
                    stack.enter_context(self._edited(name, edit))
            for name in keep:  # hooks run in order of registration: streams are kept as edited
                stack.enter_context(self._edited(name, reader(name)))
            logits, cache = self._forward(
                run.ids[index, start:], run.mask[index], _prefix(clean, index, start, layer)
            )
        for n in range(layer + 1):  # the change leaves these blocks as they were
            cache.layers[n].keys = clean.layers[n].keys[index]
            cache.layers[n].values = clean.layers[n].values[index]
        return Run(logits[:, -1], cache, run.mask[index], run.ids[index], kept)

    def read_on(
        self, past: DynamicCache, mask: Bool[Tensor, "batch pos"], rests: Sequence[tuple[int, ...]]
    ) -> Run:
        """Read further tokens after what `past` holds (`mask`: its real positions); `past` is used up."""
        ids, own = _left_pad(rests, self.device)
        whole = torch.cat([mask.to(self.device), own], 1)
        with torch.no_grad():
            logits, cache = self._forward(ids, whole, past)
        before = torch.zeros(mask.shape, dtype=torch.long, device=self.device)
        return Run(logits[:, -1], cache, whole, torch.cat([before, ids], 1), {})

    def trace(self, prompt: tuple[int, ...], hooks: Sequence[str]) -> dict[str, Float[Tensor, "pos d_model"]]:
        """One prompt's streams at `hooks` and at `EMBEDDING`, joined by one autograd graph.

        Blocks above the last hook are skipped.
        """
        streams: dict[str, Tensor] = {}

        def keep(hook: str) -> Edit:
            def edit(x: Tensor) -> Tensor:
                streams[hook] = x[0].requires_grad_() if hook == EMBEDDING else x[0]
                return streams[hook][None]

            return edit

        def enter(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (keep(EMBEDDING)(inputs[0].detach()), *inputs[1:])

        last = max(map(self.layer_of, hooks))
        handle = self.blocks[0].register_forward_pre_hook(enter)
        try:
            with torch.enable_grad(), ExitStack() as stack:
                stack.enter_context(_skipped(self.blocks[last + 1 :]))
                for hook in hooks:
                    stack.enter_context(self._edited(hook, keep(hook)))
                self._forward(*_left_pad([prompt], self.device), DynamicCache())
        finally:
            handle.remove()
        return streams

    def log_p(self, run: Run, answers: Sequence[Sequence[tuple[int, ...]]]) -> Float[Tensor, "batch answer"]:
        """Summed log-probability of each answer's tokens after each row's prompt, in nats.

        The prompt is not run again: answers of several tokens continue from the cache.

        Args:
            answers: per row, the same number of answers; an answer has at least one token.
        """
        first = run.logits.float().log_softmax(-1)
        sums = [[first[r, a[0]] for a in row] for r, row in enumerate(answers)]
        longer = [(r, i, a) for r, row in enumerate(answers) for i, a in enumerate(row) if len(a) > 1]
        if longer:
            index = torch.tensor([r for r, _, _ in longer], device=self.device)
            width = max(len(a) for _, _, a in longer) - 1
            ids = torch.zeros(len(longer), width, dtype=torch.long, device=self.device)
            for n, (_, _, a) in enumerate(longer):
                ids[n, : len(a) - 1] = torch.tensor(a[:-1])
            mask = torch.cat([run.mask[index], ids.new_ones(ids.shape).bool()], 1)
            logits, _ = self._forward(ids, mask, _select(run.cache, index), keep=width)
            rest = logits.float().log_softmax(-1)
            for n, (r, i, a) in enumerate(longer):
                targets = torch.tensor(a[1:], device=self.device)
                sums[r][i] = sums[r][i] + rest[n, torch.arange(len(a) - 1), targets].sum()
        return torch.stack([torch.stack(row) for row in sums])

    def write(
        self,
        run: Run,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        seeds: Sequence[int] = (),
    ) -> list[Written]:
        """Continue every row: greedily at temperature 0, else by seeded sampling, one seed per row.

        A row ends at an end-of-text token, before the first stop string, or after `max_new_tokens`;
        rows that ended leave the batch.
        """
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        out: list[list[int]] = [[] for _ in range(len(run.logits))]
        done: dict[int, Written] = {}
        alive = list(range(len(out)))
        logits, cache, mask = run.logits, run.cache, run.mask
        with torch.no_grad():
            for step in range(max_new_tokens):
                chosen = [
                    _pick(logits[n], temperature, generators[r] if generators else None)
                    for n, r in enumerate(alive)
                ]
                stay = []
                for n, r in enumerate(alive):
                    ended = self._ended(out[r], chosen[n], stop)
                    if ended is not None:
                        done[r] = ended
                    else:
                        stay.append(n)
                if not stay or step == max_new_tokens - 1:
                    break
                index = torch.tensor(stay, device=self.device)
                ids = torch.tensor([[chosen[n]] for n in stay], device=self.device)
                mask = torch.cat([mask[index], ids.bool() | True], 1)
                # rows that all stay keep their tensors: copying the cache costs more than a step
                past = _select(cache, index) if len(stay) < len(alive) else _shared(cache)
                alive = [alive[n] for n in stay]
                logits, cache = self._forward(ids, mask, past)
                logits = logits[:, -1]
        for r, tokens in enumerate(out):
            if r not in done:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                done[r] = Written(text, tuple(tokens), True)
        return [done[r] for r in range(len(out))]

    def _ended(self, tokens: list[int], token: int, stop: Sequence[str]) -> Written | None:
        if token in self.eos_ids:
            return Written(self.tokenizer.decode(tokens, skip_special_tokens=True), tuple(tokens), False)
        tokens.append(token)
        if not stop:
            return None
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        cut = min((at for at in (text.find(s) for s in stop) if at >= 0), default=None)
        return None if cut is None else Written(text[:cut], tuple(tokens), False)

    # -- the forward pass -------------------------------------------------------------------------

    def _forward(
        self, ids: Tensor, mask: Tensor, cache: DynamicCache, keep: int = 1
    ) -> tuple[Float[Tensor, "batch keep vocab"], DynamicCache]:
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.module(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return out.logits, out.past_key_values

    @contextmanager
    def _edited(self, hook: str, edit: Edit) -> Iterator[None]:
        """Apply `edit` to the stream (or the neurons) at `hook` while the context is open."""

        def after(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (edit(output[0]), *output[1:])
            return edit(output)

        def before(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (edit(inputs[0]), *inputs[1:])

        block = self.blocks[self.layer_of(hook)]
        if is_neurons(hook):
            projection = _projection(block)
            if projection is None:
                raise ModelError(f"{self.record.ref}: no hook '{hook}'; use layers.{self.layer_of(hook)}")
            handle = projection.register_forward_pre_hook(before)
        else:
            handle = block.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()


def open_text_model(resolved: ResolvedModel, *, device: str = "cpu", dtype: str = "float32") -> TextModel:
    """Load a resolved model directory for reading, frozen and in evaluation mode.

    Raises:
        ModelError: the weights, the configuration or the tokenizer cannot be used.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"--dtype {dtype}: not one of float32, bfloat16, float16")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    directory = resolved.directory
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        module, info = AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{resolved.ref}: cannot be loaded ({_one_line(error)})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{resolved.ref}: {len(missing)} weights are missing, first '{missing[0]}'")
    if not tokenizer.is_fast:
        raise ModelError(f"{resolved.ref}: needs a fast tokenizer (tokenizer.json) for token positions")
    try:
        module = module.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"--device {device}: cannot be used ({_one_line(error)})") from error
    record = ModelRecord(
        ref=resolved.ref,
        sha256=resolved.sha256,
        source=resolved.source,
        quantisation=resolved.quantisation,
        modality="text",
        n_parameters=sum(p.numel() for p in module.parameters()),
        dtype=dtype,
        architecture=(config.architectures or [type(module).__name__])[0],
        n_layers=len(_find_blocks(module)),
        d_model=int(module.get_input_embeddings().weight.shape[1]),
        context_length=getattr(config, "max_position_embeddings", None),
        licence=resolved.licence or "NOT STATED",
        revision=resolved.revision,
        files=resolved.files,
        tokenizer_sha256=resolved.tokenizer_sha256,
        chat_template_sha256=resolved.chat_template_sha256,
        upstream=resolved.upstream,
        upstream_verified=resolved.upstream_verified,
    )
    return TextModel(module, tokenizer, record)


# ------------------------------------------------------------------------------------- caches and masks


def _left_pad(
    prompts: Sequence[tuple[int, ...]], device: torch.device
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = True
    return ids.to(device), mask.to(device)


def _select(cache: DynamicCache, index: Int[Tensor, "batch"]) -> DynamicCache:
    """A new cache with the chosen rows; the old one is left as it is."""
    return DynamicCache([(layer.keys[index], layer.values[index]) for layer in cache.layers])


def _shared(cache: DynamicCache) -> DynamicCache:
    """A new cache over the same tensors: what is appended to it does not show in the old one."""
    return DynamicCache([(layer.keys, layer.values) for layer in cache.layers])


def _prefix(cache: DynamicCache, index: Int[Tensor, "batch"], start: int, layer: int) -> DynamicCache:
    """The first `start` positions of the chosen rows; blocks up to `layer` are skipped and hold no copy."""
    parts = []
    for n, entry in enumerate(cache.layers):
        keys, values = entry.keys[:, :, :start], entry.values[:, :, :start]
        rows = index if n > layer else index[:1]
        # Masks are sized by the first layer's length, so skipped layers keep the length and one row.
        parts.append((keys[rows], values[rows]))
    return DynamicCache(parts)


@contextmanager
def _start_at(blocks: nn.ModuleList, layer: int, stream: Tensor) -> Iterator[None]:
    """While open, blocks up to `layer` compute nothing and block `layer` returns `stream`."""

    def inject(_hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return stream

    with _skipped(blocks[:layer]):
        blocks[layer].forward = inject
        try:
            yield
        finally:
            del blocks[layer].forward


@contextmanager
def _skipped(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """While open, these blocks compute nothing and hand the stream on."""

    def skip(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    touched = list(blocks)
    for block in touched:
        block.forward = skip
    try:
        yield
    finally:
        for block in touched:
            del block.forward


# --------------------------------------------------------------------------------------------- small parts


def _pick(logits: Float[Tensor, "vocab"], temperature: float, generator: torch.Generator | None) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    p = (logits.float() / temperature).softmax(-1).cpu()
    return int(torch.multinomial(p, 1, generator=generator))


def _projection(block: nn.Module) -> nn.Module | None:
    """The projection that ends a block's MLP, if its output is added to the stream as it is."""
    if getattr(block, "post_feedforward_layernorm", None) is not None:
        return None
    mlp = getattr(block, "mlp", None)
    found = getattr(mlp, "down_proj", None) or getattr(mlp, "c_proj", None)
    return found if isinstance(getattr(found, "weight", None), Tensor) else None


def _find_blocks(module: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks: the longest ModuleList outside any other."""
    lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise ModelError(f"{type(module).__name__}: no stack of transformer blocks found")
    config = getattr(module, "config", None)
    n_layers = getattr(config, "num_hidden_layers", None)
    for candidate in lists:
        if len(candidate) == n_layers:
            return candidate
    return max(lists, key=len)


def _eos_ids(module: nn.Module, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    generation = getattr(module, "generation_config", None)
    for value in (getattr(generation, "eos_token_id", None), tokenizer.eos_token_id):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def _roles(sample: Sample, text: str, offsets: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """One role per token: `final`, a span, `question` (the rest of the user's message), `other`."""
    content = next((m.content for m in reversed(sample.messages) if m.role == "user"), "")
    start = text.rfind(content) if content else -1
    shift = 0
    if start < 0 and content.strip():  # the chat template stripped the message
        shift = len(content) - len(content.lstrip())
        content = content.strip()
        start = text.rfind(content)
    roles = []
    for a, b in offsets:
        inside = start >= 0 and b > a and a < start + len(content) and b > start
        at = (max(a - start, 0) + shift, b - start + shift)
        named = [n for n, (x, y) in sample.spans.items() if inside and at[0] < y and at[1] > x]
        smallest = min(named, key=lambda n: (sample.spans[n][1] - sample.spans[n][0], n), default=None)
        roles.append(smallest or ("question" if inside else "other"))
    roles[-1] = "final"
    return tuple(roles)


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
