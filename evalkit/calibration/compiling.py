"""A wiring as a real Llama with weights set by hand, and the SAEs that read it exactly.

Method:
1. Every direction (a word, a moved word, the hidden feature, the fillers) is one axis of an orthonormal
   basis; a random rotation, drawn per seed, turns the basis so that none is a coordinate of the stream.
2. RMSNorm: every token also writes a constant of length CONSTANT. The norm is then constant to within
   ‖rest‖² / (2 · CONSTANT²) < 0.3 %, so a norm is a known linear scale, and weights are divided by it. The
   constant also serves as the bias that Llama's layers lack. It has N_CONSTANT coordinates of its own:
   spread over all, zeroing any one of them would push every direction, and no circuit could beat the
   residual coordinates; on a single one, zeroing that one would switch the model off.
3. Block 0 does nothing, so that `layers.0` is the stream of the words themselves. In block 1 queries and
   keys are zero: attention is uniform over the past, and the value carries reach × the word's feature.
4. Block 2's SwiGLU: up reads the constant and gate is steep, so silu(STEEP · z) / STEEP ≈ ReLU(z).
5. An SAE has one unit row per direction but the constant (its bias), reads by the same rows, and adds
   rows that never fire. Its features stand in an order of their own, drawn per seed. (Units also compute
   at earlier positions, where nothing reads them; a negative hidden feature there stays unread.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evalkit.calibration.wiring import GAIN, Wiring
from evalkit.digests import digest_bytes
from evalkit.models.text import TextModel
from evalkit.records import ModelRecord
from evalkit.saes.coder import Sae
from evalkit.saes.floors import frozen_random, weights_sha256

HOOKS = ("layers.0", "layers.1", "layers.2")
D_MODEL = 128
CONSTANT = 64.0  # chosen: norms vary by under 0.3 %, and float32 still resolves 1e-5 of a feature
N_CONSTANT = 8  # chosen: without one of them the margin moves by a few per cent
STEEP = 100.0  # chosen: silu is within 0.003 of ReLU everywhere
FIRES = 0.05  # activation below which a feature is off; planted ones are at 0.5 and more
FILLERS = (
    "the", "old", "river", "bends", "under", "stone", "bridge", "where", "boats", "rest", "and", "birds",
    "cross", "toward", "quiet", "fields", "of", "green", "barley",
)  # fmt: skip
BEGIN, ASK, SAFE, FAIL = "<s>", "?", "decline", "comply"
_HEAD_DIM = 8


class Compiled(NamedTuple):
    """A model, its exact SAEs, and which feature is which."""

    wiring: Wiring
    model: TextModel
    saes: dict[str, Sae]
    features: dict[str, int]
    """Direction → feature, the same at every hook; `moved:alpha`, `hidden`, or a word."""


def compile_wiring(wiring: Wiring, seed: int) -> Compiled:
    """The model and the SAEs of one wiring; the same seed gives the same weights."""
    generator = torch.Generator().manual_seed(seed)
    width = D_MODEL - N_CONSTANT
    turned = torch.zeros(D_MODEL, width)
    turned[N_CONSTANT:] = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    names = _directions(wiring)
    assert len(names) <= width, f"{wiring.name}: {len(names)} directions do not fit in {width}"
    axis = {name: turned[:, n] for n, name in enumerate(names)}
    axis["constant"] = (torch.arange(D_MODEL) < N_CONSTANT) / N_CONSTANT**0.5
    tokenizer = _tokenizer(wiring)
    module = _llama(wiring, axis, tokenizer)
    record = ModelRecord(
        ref=f"calibration/{wiring.name}", sha256=_weights_digest(module), source="compiled by evalkit",
        quantisation=None, modality="text", n_parameters=sum(p.numel() for p in module.parameters()),
        dtype="float32", architecture="LlamaForCausalLM", n_layers=len(HOOKS), d_model=D_MODEL,
    )  # fmt: skip
    decoded = [n for n in names if n not in _undecoded(wiring)]
    spare = [turned[:, n] for n in range(len(names), width)]
    rows = torch.stack([*(axis[n] for n in decoded), *spare])
    order = torch.randperm(len(rows), generator=generator)
    features = {n: int((order == k).nonzero()) for k, n in enumerate(decoded)}
    saes = {h: _sae(h, rows[order], rows[order], CONSTANT * axis["constant"]) for h in HOOKS}
    return Compiled(wiring, TextModel(module, tokenizer, record), saes, features)


def shuffled(compiled: Compiled, seed: int) -> dict[str, Sae]:
    """The same encoders with the decoder's rows in another order: features write where others read.

    Orders in which a causal feature writes a causal row by chance are drawn again.
    """
    generator = torch.Generator().manual_seed(seed)
    causal = {f for n, f in compiled.features.items() if n not in (*FILLERS, ASK)}
    order = torch.randperm(len(next(iter(compiled.saes.values())).W_dec), generator=generator)
    while any(int(order[f]) in causal for f in causal):
        order = torch.randperm(len(order), generator=generator)
    return {h: _sae(h, s.W_enc.T, s.W_dec[order], s.b_dec) for h, s in compiled.saes.items()}


def knowing_nothing(compiled: Compiled, seed: int) -> Compiled:
    """The same model under frozen-random SAEs: a true cause is there, and no feature stands for it."""
    text = " ".join((*FILLERS, *compiled.wiring.words))
    ids = tuple(compiled.model.tokenizer(text)["input_ids"])
    with torch.no_grad():
        run = compiled.model.read([ids], HOOKS)
    saes = {h: frozen_random(s, seed, run.streams[h][0, 1:]) for h, s in compiled.saes.items()}
    return compiled._replace(saes=saes)


def crowd_of(wiring: Wiring, filler: str) -> float:
    """What one filler word adds to the failure: from half to one and a half of the average."""
    return wiring.crowd * (0.5 + FILLERS.index(filler) / (len(FILLERS) - 1))


def _sae(hook: str, read: Tensor, write: Tensor, bias: Tensor) -> Sae:
    """An SAE whose feature n reads along `read[n]` and writes along `write[n]`."""
    threshold = torch.tensor(FIRES)
    sae = Sae("jumprelu", hook, read.T.contiguous(), torch.zeros(len(read)), write, bias, threshold=threshold)
    return replace(sae, sha256=weights_sha256(sae))


def _directions(wiring: Wiring) -> list[str]:
    second = ["second"] if any(u.to == "second" for u in wiring.units) else []
    return [*wiring.words, *(f"moved:{w}" for w in wiring.words), "hidden", "crowd", *FILLERS, ASK, *second]


def _undecoded(wiring: Wiring) -> set[str]:
    hidden = {"hidden"} if wiring.undecoded else set()
    return hidden | set(wiring.undecoded) | {f"moved:{w}" for w in wiring.undecoded}


def _tokenizer(wiring: Wiring) -> PreTrainedTokenizerFast:
    """One token per word; a beginning token stands first."""
    words = (BEGIN, *wiring.words, *FILLERS, ASK, SAFE, FAIL)
    inner = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token=BEGIN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, words.index(BEGIN))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BEGIN)


def _llama(wiring: Wiring, axis: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=D_MODEL, intermediate_size=8, num_hidden_layers=len(HOOKS),
        num_attention_heads=1, num_key_value_heads=1, head_dim=_HEAD_DIM, max_position_embeddings=64,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in module.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    read = CONSTANT / D_MODEL**0.5  # undoes a norm: what a layer reads · `read` = the stream
    one = axis["constant"] / CONSTANT  # ⟨one, stream⟩ = 1
    _embed(module, wiring, axis, tokenizer)
    attention, mlp = module.model.layers[1].self_attn, module.model.layers[2].mlp
    for n, word in enumerate(wiring.words):
        attention.v_proj.weight[n] = wiring.reach * read * axis[word]
        attention.o_proj.weight[:, n] = axis[f"moved:{word}"]
    if wiring.crowd:
        every = sum(crowd_of(wiring, f) * axis[f] for f in FILLERS)
        attention.v_proj.weight[_HEAD_DIM - 1] = wiring.reach * read * every
        attention.o_proj.weight[:, _HEAD_DIM - 1] = axis["crowd"]
    for n, unit in enumerate(wiring.units):
        z = unit.bias * one
        for word, weight in unit.reads.items():
            z = z + weight * axis[f"moved:{word}"]
        mlp.gate_proj.weight[n] = STEEP * read * z
        mlp.up_proj.weight[n] = read * one / STEEP
        mlp.down_proj.weight[:, n] = unit.writes * axis[unit.to]
    causes = axis["hidden"] + axis["crowd"] + axis.get("second", 0.0)
    decision = GAIN / 2 * read * (causes - wiring.threshold * one)
    module.lm_head.weight[tokenizer.convert_tokens_to_ids(FAIL)] = decision
    module.lm_head.weight[tokenizer.convert_tokens_to_ids(SAFE)] = -decision
    return module


def _embed(
    module: LlamaForCausalLM, wiring: Wiring, axis: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast
) -> None:
    table = module.model.embed_tokens.weight
    table += CONSTANT * axis["constant"]
    for word in (*wiring.words, *FILLERS, ASK):
        table[tokenizer.convert_tokens_to_ids(word)] += wiring.strength.get(word, 1.0) * axis[word]


def _weights_digest(module: LlamaForCausalLM) -> str:
    return digest_bytes(b"".join(p.contiguous().numpy().tobytes() for _, p in module.named_parameters()))
