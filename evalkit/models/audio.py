"""The audio adapter: any Whisper-shaped model of transformers, read, re-run and written from.

The same verbs as `models.text`, on windows of sound:

1. `read` computes the log-mel spectrogram, the encoder and the decoder's opening tokens, and keeps the
   streams asked for. A clip is encoded once, alone, and its streams are remembered, so that they do not
   depend on the batch or on what was read before.
2. `rerun` recomputes the encoder's blocks above a hook with the stream changed at one or more hooks. The
   encoder looks both ways, so every frame above the change is computed again; what lies above the last
   block looks at one frame only, and only changed frames are.
3. `log_p` and `write` continue from either: a teacher-forced decoder, or a new transcript.

Hooks: `encoder.layers.N` (one position per 20 ms frame) and `decoder.layers.N` (the opening tokens). A
clip shorter than the window is padded with silence, as Whisper does; padding frames take part in the
model and are False in `mask`, so that no SAE decomposes them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.utils import logging as transformers_logging

from evalkit.errors import ModelError, SuiteError
from evalkit.models.adapter import PADDING, Edit
from evalkit.models.frames import FRAME_SAMPLES, SAMPLE_RATE_HZ, Clip, Frames, segments_of
from evalkit.models.resolve import ResolvedModel
from evalkit.records import ModelRecord, Sample
from evalkit.sound import pcm_sha256

REMEMBERED_BYTES = 512 << 20
"""Chosen: the encoder streams of fifty clips of the smallest model."""


class Heard(NamedTuple):
    """The state after reading a batch of clips."""

    logits: Float[Tensor, "batch vocab"]
    """For the transcript's first token."""
    cache: EncoderDecoderCache
    """Of the decoder's opening tokens, and the encoder's keys and values that they look at."""
    mask: Bool[Tensor, "batch pos"]
    streams: dict[str, Float[Tensor, "batch pos d_model"]]

    def offset(self, row: int) -> int:
        """Frames begin at position 0."""
        del row
        return 0

    def detached(self) -> Heard:
        """The same values without a graph."""
        layers = [tuple(t.detach() for t in layer) for layer in _layers(self.cache)]
        streams = {h: x.detach() for h, x in self.streams.items()}
        return Heard(self.logits.detach(), EncoderDecoderCache(layers), self.mask, streams)


class Transcript(NamedTuple):
    """What the model wrote to one clip."""

    text: str
    ids: tuple[int, ...]
    truncated: bool
    """True: it reached `max_new_tokens`."""


class AudioModel:
    """A Whisper-shaped model, its tokenizer, its mel filters, and the record that names it."""

    batch_rows = 8  # chosen: the decoder's keys and values over 1,500 frames take 18 MB a row (tiny)

    def __init__(
        self, module: Any, tokenizer: Any, extractor: WhisperFeatureExtractor, record: ModelRecord
    ) -> None:
        self.module: nn.Module = module
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.record = record
        self.sounds: dict[str, NDArray[np.int16]] = {}
        """Clips by the digest of their samples; whoever loads the suite fills it."""
        self.encoder, self.decoder = module.model.encoder, module.model.decoder
        self.n_encoder = len(self.encoder.layers)
        self.n_layers = self.n_encoder + len(self.decoder.layers)
        self.d_model = int(module.config.d_model)
        self.n_frames = int(module.config.max_source_positions)
        self.device = next(module.parameters()).device
        self.opening = _opening(module)
        self.eos_id = int(module.config.eos_token_id)
        self._suppressed = list(module.generation_config.suppress_tokens or [])
        filters = torch.from_numpy(np.asarray(extractor.mel_filters)).float()
        self._filters = filters.to(self.device)
        self._hann = torch.hann_window(extractor.n_fft, device=self.device)
        self._encoded: OrderedDict[str, list[Tensor]] = OrderedDict()
        """Digest of a clip → its stream after every encoder block; the least recently used first."""

    # -- hooks ------------------------------------------------------------------------------------

    def neuron_rows(self, hook: str) -> None:
        """Neurons are not read in audio models."""
        return None

    def layer_of(self, hook: str) -> int:
        """Place of a hook such as `encoder.layers.3`; the decoder's follow the encoder's.

        Raises:
            ModelError: the model has no such hook.
        """
        head, _, index = hook.rpartition(".")
        sizes = {"encoder.layers": self.n_encoder, "decoder.layers": self.n_layers - self.n_encoder}
        if head not in sizes or not index.isdigit() or int(index) >= sizes[head]:
            raise ModelError(
                f"{self.record.ref}: no hook '{hook}'; this model has encoder.layers.0 to "
                f"{self.n_encoder - 1} and decoder.layers.0 to {self.n_layers - self.n_encoder - 1}"
            )
        return int(index) + (self.n_encoder if head == "decoder.layers" else 0)

    # -- sound → frames ---------------------------------------------------------------------------

    def encode(self, sample: Sample) -> Clip:
        """The sample's clip, with a role and a time for each frame.

        Raises:
            SuiteError: the sample has no clip, or its clip is longer than the model's window.
        """
        if sample.clip is None:
            raise SuiteError(f"sample '{sample.id}': has no clip; kind 'transcribe' reads sound")
        pcm = self.sounds[sample.clip.sha256]
        limit_s = self.n_frames * FRAME_SAMPLES / SAMPLE_RATE_HZ
        if len(pcm) > self.n_frames * FRAME_SAMPLES:
            raise SuiteError(
                f"sample '{sample.id}': the clip lasts {len(pcm) / SAMPLE_RATE_HZ:.1f} s and the model "
                f"hears {limit_s:g} s at once; cut it"
            )
        return self.clip(pcm, sample.clip.name, sample.spans)

    def clip(
        self, pcm: NDArray[np.int16], name: str, spans: Mapping[str, tuple[int, int]] | None = None
    ) -> Clip:
        """A clip of 16 kHz samples; `spans` are in milliseconds."""
        frames = Frames(pcm, self.n_frames)
        frame_ms = FRAME_SAMPLES * 1000 / SAMPLE_RATE_HZ
        roles = []
        for at in range(self.n_frames):
            inside = [n for n, (a, b) in (spans or {}).items() if a <= at * frame_ms < b]
            roles.append(PADDING if at >= frames.n_filled else min(inside, default="clip"))
        return Clip(
            frames,
            f"{name}, {len(pcm) / SAMPLE_RATE_HZ:.2f} s",
            tuple(f"{at * frame_ms / 1000:.2f}s" for at in range(self.n_frames)),
            tuple(roles),
            segments_of(roles),
        )

    def encode_answer(self, text: str, after: Any = None) -> tuple[int, ...]:
        """Tokens of a transcript and the end token; an empty transcript is the end token alone.

        A clip (`after`) has no text that a transcript's tokens could merge with.
        """
        del after
        words = text.strip()
        ids = self.tokenizer(f" {words}", add_special_tokens=False)["input_ids"] if words else []
        return (*ids, self.eos_id)

    def log_mel(self, waves: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch mel time"]:
        """Whisper's log-mel spectrogram of padded windows; differentiable.

        Source: transformers `WhisperFeatureExtractor._torch_extract_fbank_features`.
        """
        window = self.n_frames * FRAME_SAMPLES
        waves = F.pad(waves, (0, window - waves.shape[1]))
        e = self.extractor
        spectrum = torch.stft(waves, e.n_fft, e.hop_length, window=self._hann, return_complex=True)
        power = spectrum[..., :-1].abs() ** 2
        log = (self._filters.T @ power).clamp(min=1e-10).log10()
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log, loudest - 8.0) + 4.0) / 4.0

    # -- running ----------------------------------------------------------------------------------

    def read(self, prompts: Sequence[Frames], hooks: Sequence[str] = (), *, grad: bool = False) -> Heard:
        """Run clips once.

        Args:
            prompts: the frames of each row.
            hooks: streams to keep.
            grad: keep the graph from the lowest hook on; parameters are frozen in any case.
        """
        encoded = [self._encode(p) for p in prompts]
        mask = torch.zeros(len(prompts), self.n_frames, dtype=torch.bool, device=self.device)
        for row, prompt in enumerate(prompts):
            mask[row, : prompt.n_filled] = True
        lowest = min(hooks, key=self.layer_of, default=None)
        top = self.n_encoder - 1
        start = min(self.layer_of(lowest), top) if grad and lowest is not None else top
        known = {h: place for h in hooks if (place := self.layer_of(h)) <= start}
        streams = {h: torch.stack([e[place] for e in encoded]) for h, place in known.items()}

        def keep(hook: str) -> Edit:
            def edit(x: Tensor) -> Tensor:
                streams[hook] = x.detach().requires_grad_() if grad and hook == lowest else x
                return streams[hook]

            return edit

        with torch.set_grad_enabled(grad):
            x = torch.stack([e[start] for e in encoded])
            if grad and lowest in known:
                x = keep(lowest)(x)
            above = [(h, keep(h)) for h in hooks if h not in known]
            logits, cache = self._above(x, start + 1, above)
        return Heard(logits, cache, mask, streams)

    def hear(self, mel: Float[Tensor, "batch mel time"], mask: Bool[Tensor, "batch pos"]) -> Heard:
        """Run spectrograms with a graph that begins at them, for gradients of the sound."""
        logits, cache = self._above(self._embed(mel), 0, [])
        return Heard(logits, cache, mask, {})

    def _encode(self, frames: Frames) -> list[Float[Tensor, "pos d_model"]]:
        """The clip's stream after every encoder block; remembered up to `REMEMBERED_BYTES`."""
        key = pcm_sha256(frames.pcm)
        if key not in self._encoded:
            with torch.no_grad():
                x = self._embed(self.log_mel(frames.wave()[None].to(self.device)))
                streams = []
                for layer in self.encoder.layers:
                    x = layer(x, None)
                    streams.append(x[0])
            self._encoded[key] = streams
            size = sum(t.numel() * t.element_size() for t in streams)
            while len(self._encoded) > max(REMEMBERED_BYTES // size, 1):
                self._encoded.popitem(last=False)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def forget(self) -> None:
        """Encode every clip anew; needed after a change to `module`."""
        self._encoded.clear()

    def _embed(self, mel: Float[Tensor, "batch mel time"]) -> Float[Tensor, "batch pos d_model"]:
        x = F.gelu(self.encoder.conv1(mel.to(self.encoder.conv1.weight.dtype)))
        x = F.gelu(self.encoder.conv2(x)).transpose(1, 2)
        embedded: Tensor = x + self.encoder.embed_positions.weight
        return embedded

    def rerun(
        self,
        run: Heard,
        rows: Sequence[int],
        hook: str,
        start: int,
        edits: Mapping[str, Edit],
        keep: Sequence[str] = (),
        until: str | None = None,
    ) -> Heard:
        """Recompute the blocks above `hook` with `edits` applied; see `TextModel.rerun`.

        `start` only says which positions an edit is shown: above a change every frame is recomputed.

        Raises:
            ModelError: `hook` is the decoder's; change the encoder.
        """
        del until  # what lies above is little, and edges between frames are not measured
        place = self.layer_of(hook)
        if place >= self.n_encoder:
            raise ModelError(f"{hook}: decoder streams are read and not changed; use an encoder hook")
        index = torch.tensor(list(rows), device=self.device)
        stream = run.streams[hook].detach()[index]
        kept: dict[str, Tensor] = {}

        def shown(edit: Edit) -> Edit:
            return lambda x: torch.cat([x[:, :start], edit(x[:, start:])], 1)

        def reader(name: str) -> Edit:
            def edit(x: Tensor) -> Tensor:
                kept[name] = x[:, start:]
                return x

            return edit

        changes = [(h, shown(e)) for h, e in edits.items()] + [(h, reader(h)) for h in keep]
        with torch.no_grad():
            for name, edit in changes:
                if name == hook:
                    stream = edit(stream)
            above = [c for c in changes if c[0] != hook]
            if place == self.n_encoder - 1:
                logits, cache = self._above_last(run, index, stream)
            else:
                logits, cache = self._above(stream, place + 1, above)
        return Heard(logits, cache, run.mask[index], kept)

    def log_p(
        self, run: Heard, answers: Sequence[Sequence[tuple[int, ...]]]
    ) -> Float[Tensor, "batch answer"]:
        """Summed log-probability of each answer's tokens, teacher-forced, in nats; see `TextModel.log_p`."""
        first = run.logits.float().log_softmax(-1)
        sums = [[first[r, a[0]] for a in row] for r, row in enumerate(answers)]
        longer = [(r, i, a) for r, row in enumerate(answers) for i, a in enumerate(row) if len(a) > 1]
        if longer:
            index = torch.tensor([r for r, _, _ in longer], device=self.device)
            width = max(len(a) for _, _, a in longer) - 1
            ids = torch.full((len(longer), width), self.eos_id, device=self.device)
            for n, (_, _, a) in enumerate(longer):
                ids[n, : len(a) - 1] = torch.tensor(a[:-1])
            logits, _ = self._decode(ids, _select(run.cache, index))
            rest = logits.float().log_softmax(-1)
            for n, (r, i, a) in enumerate(longer):
                targets = torch.tensor(a[1:], device=self.device)
                sums[r][i] = sums[r][i] + rest[n, torch.arange(len(a) - 1), targets].sum()
        return torch.stack([torch.stack(row) for row in sums])

    def write(self, run: Heard, *, max_new_tokens: int) -> list[Transcript]:
        """Transcribe every row greedily; tokens that the model's own settings suppress are not written.

        Whisper's own decoders also forbid an empty transcript. That rule is left out here: it would make
        every clip without speech a false one.
        """
        out: list[list[int]] = [[] for _ in range(len(run.logits))]
        ended: set[int] = set()
        alive = list(range(len(out)))
        logits, cache = run.logits, run.cache
        with torch.no_grad():
            for step in range(max_new_tokens):
                chosen = self._allowed(logits).argmax(-1).tolist()
                stay = [n for n, token in enumerate(chosen) if token != self.eos_id]
                ended.update(alive[n] for n in range(len(chosen)) if chosen[n] == self.eos_id)
                for n in stay:
                    out[alive[n]].append(chosen[n])
                if not stay or step == max_new_tokens - 1:
                    break
                alive = [alive[n] for n in stay]
                ids = torch.tensor([[chosen[n]] for n in stay], device=self.device)
                if step == 0 or len(stay) < len(chosen):
                    cache = _select(cache, torch.tensor(stay, device=self.device))
                all_logits, cache = self._decode(ids, cache)
                logits = all_logits[:, -1]
        decode = self.tokenizer.decode
        return [
            Transcript(decode(ids, skip_special_tokens=True), tuple(ids), r not in ended)
            for r, ids in enumerate(out)
        ]

    # -- the forward pass -------------------------------------------------------------------------

    def _above(
        self, x: Tensor, first: int, edits: Sequence[tuple[str, Edit]]
    ) -> tuple[Tensor, EncoderDecoderCache]:
        """Encoder blocks from `first` on, then the decoder's opening; edits in the order given."""
        by_layer: dict[int, list[Edit]] = {}
        for hook, edit in edits:
            by_layer.setdefault(self.layer_of(hook), []).append(edit)
        for n in range(first, self.n_encoder):
            x = self.encoder.layers[n](x, None)
            for edit in by_layer.get(n, []):
                x = edit(x)
        x = self.encoder.layer_norm(x)
        opening = torch.tensor([self.opening] * len(x), device=self.device)
        empty = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with ExitStack() as stack:
            for n, found in by_layer.items():
                for edit in found if n >= self.n_encoder else ():
                    stack.enter_context(_edited(self.decoder.layers[n - self.n_encoder], edit))
            logits, cache = self._decode(opening, empty, x)
        return logits[:, -1], cache

    def _above_last(
        self, run: Heard, index: Tensor, stream: Float[Tensor, "batch pos d_model"]
    ) -> tuple[Tensor, EncoderDecoderCache]:
        """The decoder's opening after a change of the last block's stream in some frames.

        Its keys and values are position by position: those of unchanged frames are taken from `run`.
        """
        hook = f"encoder.layers.{self.n_encoder - 1}"
        rows, frames = (stream != run.streams[hook][index]).any(-1).nonzero(as_tuple=True)
        encoded = self.encoder.layer_norm(stream[rows, frames])
        layers = []
        for block, layer in zip(self.decoder.layers, _layers(run.cache), strict=True):
            looks, (keys, values) = block.encoder_attn, (t[index] for t in layer[2:])
            shape = (len(rows), looks.num_heads, looks.head_dim)
            keys[rows, :, frames] = looks.k_proj(encoded).view(shape)
            values[rows, :, frames] = looks.v_proj(encoded).view(shape)
            layers.append((keys, values))
        opening = torch.tensor([self.opening] * len(stream), device=self.device)
        logits, cache = self._decode(opening, EncoderDecoderCache(DynamicCache(), DynamicCache(layers)))
        return logits[:, -1], cache

    def _decode(
        self, ids: Tensor, cache: EncoderDecoderCache, encoded: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token vocab"], EncoderDecoderCache]:
        """Decoder over `ids` after what `cache` holds; `encoded` is needed once, with an empty cache."""
        if encoded is None:  # the cache holds its keys and values; only the batch size is read
            encoded = torch.zeros(len(ids), 1, self.d_model, device=self.device)
        out = self.decoder(
            input_ids=ids, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
        )
        logits: Tensor = self.module.proj_out(out.last_hidden_state)  # type: ignore[operator]
        return logits, out.past_key_values

    def _allowed(self, logits: Tensor) -> Tensor:
        allowed = logits.clone()
        allowed[:, self._suppressed] = -torch.inf
        return allowed


def open_audio_model(resolved: ResolvedModel, *, device: str = "cpu", dtype: str = "float32") -> AudioModel:
    """Load a resolved Whisper directory for reading, frozen and in evaluation mode.

    Raises:
        ModelError: it is no Whisper model, or its files cannot be used.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"--dtype {dtype}: not one of float32, bfloat16, float16")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    directory = resolved.directory
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        if config.model_type != "whisper":
            raise ModelError(f"{resolved.ref}: a '{config.model_type}' model; modality 'audio' needs Whisper")
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        extractor = WhisperFeatureExtractor.from_pretrained(directory, local_files_only=True)
        module, info = WhisperForConditionalGeneration.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
        module = module.to(device).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AssertionError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelError(f"{resolved.ref}: cannot be loaded ({line})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{resolved.ref}: {len(missing)} weights are missing, first '{missing[0]}'")
    record = ModelRecord(
        ref=resolved.ref,
        sha256=resolved.sha256,
        source=resolved.source,
        quantisation=resolved.quantisation,
        modality="audio",
        n_parameters=sum(p.numel() for p in module.parameters()),
        dtype=dtype,
        architecture="WhisperForConditionalGeneration",
        n_layers=config.encoder_layers + config.decoder_layers,
        d_model=config.d_model,
        context_length=config.max_target_positions,
        licence=resolved.licence or "NOT STATED",
        revision=resolved.revision,
        files=resolved.files,
        tokenizer_sha256=resolved.tokenizer_sha256,
        upstream=resolved.upstream,
        upstream_verified=resolved.upstream_verified,
    )
    return AudioModel(module, tokenizer, extractor, record)


def _opening(module: Any) -> tuple[int, ...]:
    """The decoder's opening tokens: start, for multilingual models English and `transcribe`, no times."""
    g = module.generation_config
    opening = [module.config.decoder_start_token_id]
    if getattr(g, "is_multilingual", False):
        opening += [g.lang_to_id["<|en|>"], g.task_to_id["transcribe"]]
    no_times = getattr(g, "no_timestamps_token_id", None)
    return tuple(opening + ([no_times] if no_times is not None else []))


def _layers(cache: EncoderDecoderCache) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    both = zip(cache.self_attention_cache.layers, cache.cross_attention_cache.layers, strict=True)
    return [(own.keys, own.values, seen.keys, seen.values) for own, seen in both]


def _select(cache: EncoderDecoderCache, index: Tensor) -> EncoderDecoderCache:
    """A new cache with the chosen rows; the old one is left as it is."""
    return EncoderDecoderCache([tuple(t[index] for t in layer) for layer in _layers(cache)])


@contextmanager
def _edited(block: nn.Module, edit: Edit) -> Iterator[None]:
    """Apply `edit` to a decoder block's stream while the context is open."""

    def after(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = block.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
