"""The text adapter: batches change nothing, and re-runs equal full runs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from evalkit.errors import ModelError, SuiteError
from evalkit.models.norms import frozen_scales, scales_held
from evalkit.models.resolve import resolve_model
from evalkit.models.text import Prompt, TextModel, open_text_model
from evalkit.records import ChatMessage, Sample

TEXTS = (
    "What is the capital of France?",
    "I am certain that the answer is Lyon. What is the capital of France?",
    "How many legs does a spider have? Six?",
    "Tell me.",
)


def sample(text: str, **more: object) -> Sample:
    return Sample(
        id="s",
        probe="p",
        failure_mode="f",
        group="g",
        messages=(ChatMessage(role="user", content=text),),
        **more,
    )


@pytest.fixture(scope="module")
def model(tiny_dir: Path) -> TextModel:
    return open_text_model(resolve_model(str(tiny_dir)))


def prompts(model: TextModel) -> list[tuple[int, ...]]:
    return [model.encode(sample(t)).ids for t in TEXTS] * 4


def test_log_probabilities_are_the_same_at_batch_1_and_16(model: TextModel) -> None:
    ids = prompts(model)
    answers = [(model.encode_answer("Paris, of course"), model.encode_answer("Lyon"))] * len(ids)
    with torch.no_grad():
        together = model.log_p(model.read(ids), answers)
        alone = torch.cat([model.log_p(model.read([i]), [a]) for i, a in zip(ids, answers, strict=True)])
    assert len(ids) == 16
    assert torch.allclose(together, alone, atol=1e-4)


def test_log_probabilities_equal_one_plain_forward(model: TextModel) -> None:
    prompt, answer = model.encode(sample(TEXTS[0])).ids, model.encode_answer("Paris, of course")
    with torch.no_grad():
        got = model.log_p(model.read([prompt]), [(answer,)])[0, 0]
        logits = model.module(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = sum(logits[len(prompt) - 1 + n, t] for n, t in enumerate(answer))
    assert got.item() == pytest.approx(float(expected), abs=1e-4)


def test_an_answer_is_read_as_the_prompts_continuation(model: TextModel) -> None:
    inner = Tokenizer(models.BPE(unk_token=None))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(initial_alphabet=list("▁ABPaehirst:"), vocab_size=40)
    inner.train_from_iterator(["Paris", "▁Paris"] * 9, trainer)
    marking = TextModel(model.module, PreTrainedTokenizerFast(tokenizer_object=inner), model.record)
    prompt = Prompt(tuple(inner.encode("Paris:").ids), "Paris:", (), ())

    def words(ids: tuple[int, ...]) -> str:
        return "".join(map(inner.id_to_token, ids))

    assert words(marking.encode_answer("Paris")) == "▁Paris"
    assert words(marking.encode_answer("Paris", prompt)) == "Paris"
    assert words(marking.encode_answer(" Paris", prompt)) == "▁Paris"
    merging = Prompt(tuple(inner.encode("Pa").ids), "Pa", (), ())
    assert inner.encode("Paris").ids[: len(merging.ids)] != list(merging.ids)
    assert words(marking.encode_answer("ris", merging)) == "▁ris", "a merge would change the prompt"


def test_generated_text_does_not_depend_on_the_batch(model: TextModel) -> None:
    ids = prompts(model)[:4]
    with torch.no_grad():
        together = model.write(model.read(ids), max_new_tokens=8, temperature=1.0, seeds=[1, 2, 3, 4])
        alone = [
            model.write(model.read([i]), max_new_tokens=8, temperature=1.0, seeds=[n + 1])[0]
            for n, i in enumerate(ids)
        ]
    assert together == alone


def test_greedy_text_equals_transformers_generate(model: TextModel) -> None:
    prompt = prompts(model)[1]
    with torch.no_grad():
        [ours] = model.write(model.read([prompt]), max_new_tokens=10)
        theirs = model.module.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[
            0, len(prompt) :
        ]
    assert list(ours.ids) == [t for t in theirs.tolist() if t not in model.eos_ids]


def test_a_stop_string_ends_only_its_own_row(model: TextModel) -> None:
    ids = prompts(model)[:4]
    with torch.no_grad():
        free = model.write(model.read(ids), max_new_tokens=12)
        stop = free[0].text[2:4]
        stopped = model.write(model.read(ids), max_new_tokens=12, stop=[stop])
    assert stopped[0].text == free[0].text[: free[0].text.find(stop)]
    for before, after in zip(free, stopped, strict=True):
        assert before.text.startswith(after.text)


@pytest.mark.parametrize("hook", ["layers.0", "layers.2", "layers.3"])
def test_a_rerun_equals_a_full_run_with_the_same_change(model: TextModel, hook: str) -> None:
    ids = prompts(model)[:3]
    width = max(map(len, ids))
    position = width - 1
    push = torch.linspace(-1, 1, model.d_model)

    def full(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, position] += push
        return x

    def suffix(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, position - (position - 2)] += push
        return x

    answers = [(model.encode_answer("Paris, of course"), model.encode_answer("Lyon"))] * 3
    with torch.no_grad():
        clean = model.read(ids, ["layers.0", "layers.2", "layers.3"])
        changed = model.rerun(clean, [2, 0, 1], hook, position - 2, {hook: suffix, "layers.3": suffix})
        with ExitStack() as stack:
            for name in {hook, "layers.3"}:
                stack.enter_context(model._edited(name, full))
            expected = model.read(ids)
        order = torch.tensor([2, 0, 1])
        assert torch.allclose(changed.logits, expected.logits[order], atol=1e-4)
        assert torch.allclose(model.log_p(changed, answers), model.log_p(expected, answers)[order], atol=1e-4)
        assert [w.text for w in model.write(changed, max_new_tokens=6)] == [
            model.write(expected, max_new_tokens=6)[i].text for i in (2, 0, 1)
        ]
    assert (changed.logits - clean.logits[order]).abs().max() > 1e-3, "the change must change something"


def test_a_rerun_leaves_the_model_as_it_was(model: TextModel) -> None:
    ids = prompts(model)[:2]
    with torch.no_grad():
        before = model.read(ids, ["layers.1"])
        model.rerun(before, [0, 1], "layers.1", 1, {"layers.1": lambda x: x + 1.0})
        after = model.read(ids)
    assert torch.equal(before.logits, after.logits)


def test_roles_name_spans_question_and_final_position(model: TextModel) -> None:
    text = "I am certain that the answer is Lyon. What is the capital of France?"
    prompt = model.encode(sample(text, spans={"claim": (0, 37)}))
    by_role = {
        r: "".join(t for t, x in zip(prompt.tokens, prompt.roles, strict=True) if x == r)
        for r in prompt.roles
    }
    assert by_role["claim"].strip() == "I am certain that the answer is Lyon."
    assert by_role["question"].strip() == "What is the capital of France?"
    assert prompt.roles[-1] == "final"
    assert prompt.roles[0] == "other"


def test_gated_norms_compute_the_same_and_can_hold_their_scale(model: TextModel) -> None:
    ids = prompts(model)[:2]
    plain = model.read(ids, ["layers.1"], grad=True)
    with frozen_scales(model.module):
        gated = model.read(ids, ["layers.1"], grad=True)
    assert torch.allclose(plain.logits, gated.logits, atol=1e-5)

    def gradient(run: object, **more: bool) -> torch.Tensor:
        return torch.autograd.grad(run.logits[:, 5].sum(), run.streams["layers.1"], **more)[0]  # type: ignore[attr-defined]

    reference = gradient(plain)
    assert torch.allclose(gradient(gated, retain_graph=True), reference, atol=1e-4)
    with scales_held():
        held = gradient(gated)
    assert (held - reference).abs().max() > 1e-3


def test_an_unknown_hook_is_refused(model: TextModel) -> None:
    with pytest.raises(ModelError, match=r"no hook 'layers.9'; this model has layers.0 to layers.3"):
        model.layer_of("layers.9")


def test_a_prompt_longer_than_the_context_is_refused(model: TextModel) -> None:
    with pytest.raises(SuiteError, match="leave no room in a context of 256; shorten it"):
        model.encode(sample("word " * 300))


def test_a_prompt_without_tokens_is_refused(llama_dir: Path) -> None:
    model = open_text_model(resolve_model(str(llama_dir)))
    with pytest.raises(SuiteError, match="the prompt has no tokens"):
        model.encode(sample("", raw=True))


def test_an_unknown_dtype_or_device_is_refused(llama_dir: Path) -> None:
    with pytest.raises(ModelError, match="not one of float32, bfloat16, float16"):
        open_text_model(resolve_model(str(llama_dir)), dtype="int3")
    with pytest.raises(ModelError, match="--device warp: cannot be used"):
        open_text_model(resolve_model(str(llama_dir)), device="warp")
