"""`evalkit sae label`: an SAE and a model → a labels file, each label with source and detection score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from evalkit.errors import ConfigError
from evalkit.models.cache import Progress, Step
from evalkit.models.text import Prompt, TextModel
from evalkit.records import ChatMessage, Results, Sample
from evalkit.sae_runs import held_out_streams, open_model
from evalkit.saes import catalogue
from evalkit.saes.detection import Examples, Judge, detection_score, examples, token_overlap
from evalkit.saes.labels import FeatureLabel, LabelHead, read_export, write_labels
from evalkit.saes.loaders import load_sae
from evalkit.saes.train_run import limits_of
from evalkit.store import read_results

BATCH = 8
_MAX_NEW = 16


class LabelOptions(NamedTuple):
    """What `evalkit sae label` was asked for."""

    sae: str
    model: str
    """The model whose stream the SAE reads."""
    by: str | None = None
    """The local model that writes or judges labels; None: `model` itself."""
    export: Path | None = None
    """Labels of a Neuronpedia export, instead of asking a model."""
    features: Sequence[int] = ()
    run: Path | None = None
    """Label the features that this run describes."""
    judge: str = "tokens"
    n: int = 20
    seed: int = 0
    corpus: Path | None = None
    offline: bool = False


def label_for(options: LabelOptions, out: Path, progress: Progress) -> list[FeatureLabel]:
    """Label features, score each label on held-out contexts, and write the labels file.

    Raises:
        EvalkitError: a reference, an option or a file is wrong.
    """
    if options.judge not in ("tokens", "model"):
        raise ConfigError(f"--judge {options.judge}: not one of tokens, model")
    model = open_model(options.model, options.offline, progress)
    folder = catalogue.resolve(options.sae, Path.cwd())
    sae = load_sae(folder, None, d_model=model.d_model, n_layers=model.n_layers)
    export = read_export(options.export) if options.export else {}
    features = _features(options, sae.hook, sae.d_sae, export)
    asked = model if options.by is None else open_model(options.by, options.offline, progress)

    progress(Step("reading held-out text", 0, 1, ""))
    streams = held_out_streams(model, sae.hook, options.corpus, options.offline, progress)
    found = examples(
        streams,
        sae,
        limits_of(sae, streams),
        features,
        lambda token: str(model.tokenizer.decode([token])),
        n=options.n,
        seed=options.seed,
    )
    source = "neuronpedia" if options.export else f"local_model:{asked.record.ref}"
    words = [export[f] for f in features] if options.export else written(asked, found, progress)
    judge: Judge = token_overlap if options.judge == "tokens" else model_judge(asked)
    name = "token_overlap" if options.judge == "tokens" else f"local_model:{asked.record.ref}"
    labels = []
    for done, (feature, label, here) in enumerate(zip(features, words, found, strict=True)):
        progress(Step("scoring labels", done, len(features), ""))
        if label:
            score = detection_score(label, here, judge, name)
            labels.append(FeatureLabel(feature=feature, label=label, label_source=source, label_score=score))
    write_labels(out, LabelHead(hook=sae.hook, sae_sha256=sae.sha256), labels)
    return labels


def written(model: TextModel, found: Sequence[Examples], progress: Progress) -> list[str]:
    """What the model says the contexts of each feature share, greedily; empty where it was shown none."""
    words = [""] * len(found)
    ready = [i for i, here in enumerate(found) if here.shown]
    for start in range(0, len(ready), BATCH):
        progress(Step("asking for labels", start, len(ready), ""))
        batch = ready[start : start + BATCH]
        with torch.no_grad():
            run = model.read([_asked(model, _QUESTION, list(found[i].shown)).ids for i in batch], [])
            answers = model.write(run, max_new_tokens=_MAX_NEW, stop=("\n",))
        for i, answer in zip(batch, answers, strict=True):
            words[i] = " ".join(answer.text.split()).strip(" .\"'*")[:400]
    return words


def model_judge(model: TextModel) -> Judge:
    """A judge that asks the model, context by context: does this text match the label? Yes or No."""
    answers = [model.encode_answer("Yes"), model.encode_answer("No")]

    def judge(label: str, contexts: Sequence[str]) -> list[bool]:
        said: list[bool] = []
        for start in range(0, len(contexts), BATCH):
            texts = contexts[start : start + BATCH]
            question = f"Does the text match the description “{label}”? Answer Yes or No.\n"
            with torch.no_grad():
                run = model.read([_asked(model, question, [text]).ids for text in texts], [])
                log_p = model.log_p(run, [answers] * len(texts))
            said += (log_p[:, 0] > log_p[:, 1]).tolist()
        return said

    return judge


_QUESTION = "Name in at most five words what these texts have in common. Reply with the words alone.\n"


def _asked(model: TextModel, question: str, texts: Sequence[str]) -> Prompt:
    """The question with the texts as a prompt in the model's own format."""
    content = question + "".join(f"Text: {' '.join(text.split())}\n" for text in texts)
    message = ChatMessage(role="user", content=content)
    return model.encode(
        Sample(id="label", probe="label", failure_mode="label", group="label", messages=(message,))
    )


def _features(options: LabelOptions, hook: str, d_sae: int, export: dict[int, str]) -> list[int]:
    wanted = set(options.features)
    if options.run is not None:
        results: Results = read_results(options.run)
        wanted |= {f.feature for f in results.features if f.hook == hook}
    if options.export is not None:
        wanted = wanted & set(export) if wanted else set(export)
    if not wanted:
        raise ConfigError(
            "no feature to label: name some with --feature, or a run that describes some with --run"
        )
    if max(wanted) >= d_sae:
        raise ConfigError(f"feature {max(wanted)}: the SAE has {d_sae}; it is of another SAE")
    return sorted(wanted)
