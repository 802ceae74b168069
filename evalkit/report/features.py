"""Features in words: the tokens they promote, the contexts in which they fire, labels with their source."""

from __future__ import annotations

from evalkit.records import Feature, FeatureContext, LabelScore
from evalkit.report import text
from evalkit.report.nouns import FeatureCard, Inputs, Shaded

N_CARDS = 16
N_CONTEXTS = 3
N_TOKENS = 8
_WINDOW = 20


def feature_id(hook: str, feature: int) -> str:
    """`L16 #4021` for feature 4021 of the SAE at `layers.16`."""
    place = text.name(hook)
    return (
        f"L{place.removeprefix('layers.')}{text.NBSP}#{feature}"
        if place.startswith("layers.")
        else f"{place} #{feature}"
    )


def feature_cards(inputs: Inputs, wanted: list[tuple[str, int]]) -> tuple[tuple[FeatureCard, ...], str]:
    """Cards of the first wanted features on which there is evidence, and a note on the rest."""
    known = {(f.hook, f.feature): f for f in inputs.results.features}
    found = [known[key] for key in wanted if key in known]
    n_shown, n_wanted = text.count(min(len(found), N_CARDS)), text.count(len(wanted))
    note = f"{n_shown} of the {n_wanted} features named above are shown"
    missing = len(wanted) - len(found)
    note += f"; for {text.count(missing)} no evidence was collected" if missing else ""
    return tuple(_card(feature) for feature in found[:N_CARDS]), note + ". The rest stands in results.json."


def _card(feature: Feature) -> FeatureCard:
    density = text.percent(feature.density, 2)
    if feature.density is not None:
        density = f"fires on {density} of tokens ({text.stated(feature.density_source)})"
    ranked = sorted(feature.top_contexts, key=lambda c: -max(c.activations, default=0.0))
    return FeatureCard(
        id=feature_id(feature.hook, feature.feature),
        density=density,
        label=label_words(feature.label, feature.label_source, feature.label_score),
        promoted=tuple(text.token(t) for t in feature.promoted_tokens[:N_TOKENS]),
        suppressed=tuple(text.token(t) for t in feature.suppressed_tokens[:N_TOKENS]),
        contexts=tuple(_context(context) for context in ranked[:N_CONTEXTS]),
    )


def label_words(label: str | None, source: str | None, score: LabelScore | None) -> str:
    """A label, never without where it comes from and how well it fits."""
    if not label:
        return "no label"
    return f"label “{text.name(label)}”, source: {text.stated(source)}, {score_words(score)}"


def score_words(score: LabelScore | None) -> str:
    """`detection 0.71 (balanced accuracy on 20 + 20 held-out contexts, judge token overlap)`."""
    if score is None or score.balanced_accuracy is None:
        reason = f" ({text.name(score.not_measured)})" if score and score.not_measured else ""
        return f"detection not measured{reason}"
    n = f"{score.n_firing}{text.NBSP}+{text.NBSP}{score.n_other}"
    return (
        f"detection {text.number(score.balanced_accuracy, 2)} (balanced accuracy, guessing 0.50, on {n} "
        f"held-out contexts; judge {text.name(score.judge).replace('_', ' ')})"
    )


def _context(context: FeatureContext) -> tuple[str, tuple[Shaded, ...], str]:
    top = max(context.activations, default=0.0)
    peak = context.activations.index(top) if context.activations else 0
    start = max(0, min(peak - 2 * _WINDOW // 3, len(context.tokens) - _WINDOW))
    pairs = list(zip(context.tokens, context.activations, strict=False))[start : start + _WINDOW]
    shaded = [
        Shaded(_running(token), round(9 * max(0.0, value) / top) if top > 0 else 0) for token, value in pairs
    ]
    return text.name(context.source), tuple(shaded), text.number(top, 2)


def _running(token: str) -> str:
    """A token inside running text: spaces stay spaces, line ends are shown."""
    return text.printable(token[:40]).replace("\n", "⏎").replace("\t", " ")
