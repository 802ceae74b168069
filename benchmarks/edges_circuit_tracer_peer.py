"""circuit-tracer's side of `edges_circuit_tracer.py`; runs in circuit-tracer's own environment.

    python edges_circuit_tracer_peer.py WORK BATCH

Reads the material in WORK, attributes it with BATCH copies per backward, and writes WORK/peer-BATCH.*.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from circuit_tracer import ReplacementModel, attribute
from circuit_tracer.attribution.targets import CustomTarget
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from counting import cost_of, one_thread
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def main(work: Path, batch: int) -> None:
    one_thread()
    plan = json.loads((work / "plan.json").read_text("utf-8"))
    model = replacement_model(work, plan)
    target = CustomTarget("margin", 1.0, load_file(work / "target.safetensors")["target"])
    rounds = -(-plan["max_features"] // batch)  # rank once: every batch size then keeps the same features

    def run() -> object:
        return attribute(
            torch.tensor(plan["prompt"]), model, attribution_targets=[target], batch_size=batch,
            max_feature_nodes=plan["max_features"], update_interval=rounds,
        )  # fmt: skip

    graph, cost = cost_of(run)
    chosen = graph.active_features[graph.selected_features]
    tensors = {"adjacency": graph.adjacency_matrix, "features": chosen}
    save_file({k: v.contiguous() for k, v in tensors.items()}, work / f"peer-{batch}.safetensors")
    scores = compute_graph_scores(graph)
    figures = cost._asdict() | {"n_active": len(graph.active_features), "scores": scores}
    (work / f"peer-{batch}.json").write_text(json.dumps(figures), "utf-8")


def replacement_model(work: Path, plan: dict[str, object]) -> ReplacementModel:
    """The same weights under TransformerLens, with the same transcoders."""
    shape = LlamaConfig(**plan["model"])
    llama = LlamaForCausalLM(shape)
    llama.load_state_dict(load_file(work / "model.safetensors"))
    head = shape.hidden_size // shape.num_attention_heads
    config = HookedTransformerConfig(
        n_layers=shape.num_hidden_layers, d_model=shape.hidden_size, n_ctx=shape.max_position_embeddings,
        d_head=head, n_heads=shape.num_attention_heads, d_mlp=shape.intermediate_size, act_fn="silu",
        gated_mlp=True, d_vocab=shape.vocab_size, normalization_type="RMS", eps=shape.rms_norm_eps,
        final_rms=True, positional_embedding_type="rotary", rotary_dim=head, rotary_adjacent_pairs=False,
        rotary_base=10000, original_architecture="LlamaForCausalLM", model_name="random", device="cpu",
        use_hook_tokens=False,
    )  # fmt: skip
    transcoders = TranscoderSet(
        {n: transcoder(work, plan, n) for n in range(shape.num_hidden_layers)},
        feature_input_hook="mlp.hook_in", feature_output_hook="mlp.hook_out",
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(shape.vocab_size)}, unk_token="t1"))
    special = {"bos_token": "t0", "pad_token": "t0", "eos_token": "t0"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(work / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")  # TransformerLens opens it once more
    state = convert_llama_weights(llama, config)
    model = ReplacementModel.from_config(config, transcoders, tokenizer=tokenizer)
    places = {
        n: n.replace("mlp.old_mlp.", "mlp.").replace("unembed.old_unembed.", "unembed.")
        for n in model.state_dict()
    }
    lost = set(state) - set(places.values())
    assert not lost, f"weights without a place: {sorted(lost)[:3]}"
    model.load_state_dict({n: state[p] for n, p in places.items() if p in state}, strict=False)
    ids = torch.tensor([plan["prompt"]])
    with torch.no_grad():
        gap = (model(ids) - llama(ids).logits).abs().max()
    assert gap < 1e-3, f"the two models differ by {gap}"
    return model


def transcoder(work: Path, plan: dict[str, object], n: int) -> SingleLayerTranscoder:
    weights = load_file(work / "transcoders.safetensors")
    skip = f"{n}.W_skip" in weights
    made = SingleLayerTranscoder(
        weights[f"{n}.W_enc"].shape[0], weights[f"{n}.W_enc"].shape[1],
        JumpReLU(weights[f"{n}.threshold"]), n, skip_connection=skip, dtype=torch.float32,
    )  # fmt: skip
    made.W_enc.data = weights[f"{n}.W_enc"].T.contiguous()
    made.W_dec.data = weights[f"{n}.W_dec"]
    made.b_enc.data, made.b_dec.data = weights[f"{n}.b_enc"], weights[f"{n}.b_dec"]
    if skip:
        made.W_skip.data = weights[f"{n}.W_skip"]
    return made


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
