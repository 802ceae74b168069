"""SAE cards side by side, each figure beside the frozen-random floor."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from evalkit.records import SaeCard, SaeQuality, SaeRecord
from evalkit.report import text
from evalkit.report.nouns import Column, SaeReport, SaeWords, Table

N_ABREAST = 4
_Figure = Callable[[SaeQuality], float | None]
_QUALITY: tuple[tuple[str, _Figure, bool, int], ...] = (
    ("Explained variance", lambda q: q.explained_variance, True, 3),
    ("Cross-entropy recovered, against zero", lambda q: q.ce_recovered_zero, True, 3),
    ("Cross-entropy recovered, against the mean", lambda q: q.ce_recovered_mean, True, 3),
    ("Active features per token (L0)", lambda q: q.l0, False, 1),
    ("KL from the clean prediction, nats per token", lambda q: q.kl_nats, False, 3),
    ("Dead features, share", lambda q: q.dead_share, False, 3),
    ("Dense features (at over 10 % of tokens), share", lambda q: q.dense_share, False, 3),
)


def sae_report(saes: tuple[SaeRecord, ...]) -> SaeReport | None:
    """Section 7: the SAEs; None if none was given."""
    if not saes:
        return None
    groups = [saes[i : i + N_ABREAST] for i in range(0, len(saes), N_ABREAST)]
    notes = dict.fromkeys(text.name(note) for sae in saes if sae.card for note in sae.card.notes)
    return SaeReport(
        words=_words(saes),
        cards=tuple(table for group in groups if (table := _cards(group))),
        files=_files(saes),
        corpus=_corpus(saes),
        notes=tuple(notes),
    )


def _cards(saes: tuple[SaeRecord, ...]) -> Table | None:
    if all(sae.card is None for sae in saes):
        return None

    def row(name: str, get: Callable[[SaeRecord, SaeCard], str]) -> tuple[str, ...]:
        return (name, *(get(sae, sae.card) if sae.card else text.NOT_MEASURED for sae in saes))

    rows = [
        (
            "Architecture, features",
            *(f"{text.name(s.architecture)}, {text.count(s.d_sae)}" for s in saes),
        ),
        row("k", lambda _, card: text.count(card.k) if card.k is not None else "not fixed"),
        row("Tokens, trained", lambda _, card: text.count(card.n_tokens_trained)),
        row("Tokens, evaluated", lambda _, card: text.count(card.n_tokens_evaluated)),
    ]
    for name, get, _, digits in _QUALITY:
        rows.append(row(name, _beside(lambda quality, get=get: get(quality), digits)))  # type: ignore[misc]
    rows += [
        row("Explained variance, a run's failures", lambda _, card: _on_run(card, "failures")),
        row("Explained variance, a run's passes", lambda _, card: _on_run(card, "passes")),
        row("Error share in that run, all its SAEs", lambda _, card: _error_share(card)),
        row("Sparse probing, 5 features, mean AUROC", lambda _, card: _probing(card)),
        row("Dense probe, mean AUROC", lambda _, card: _dense(card)),
        row(
            "Positions not decomposed", lambda _, card: ", ".join(map(str, card.excluded_positions)) or "none"
        ),
        row(
            "Norm limit",
            lambda _, card: f"{card.norm_limit:,.0f}" if card.norm_limit is not None else text.NOT_STATED,
        ),
        row("Seed stability", lambda _, card: text.percent(card.seed_stability)),
    ]
    columns = (
        Column("Held-out figures; in brackets the frozen-random floor", "text", "w35"),
        *(Column(text.name(sae.hook), "num") for sae in saes),
    )
    note = (
        "Seed stability: share of features with a match (decoder and encoder cosine ≥ 0.7) in another seed. "
        "Probes tell one source of held-out text from the others."
    )
    return Table("SAE cards", columns, tuple(rows), note)


def _beside(get: _Figure, digits: int) -> Callable[[SaeRecord, SaeCard], str]:
    def shown(_: SaeRecord, card: SaeCard) -> str:
        own = get(card.quality)
        floor = get(card.random_floor) if card.random_floor else None
        if own is None:
            return text.NOT_MEASURED
        return f"{text.number(own, digits)} ({text.number(floor, digits) if floor is not None else '–'})"

    return shown


def _on_run(card: SaeCard, which: str) -> str:
    if card.on_run is None:
        return text.NOT_MEASURED
    own, floor = getattr(card.on_run, f"on_{which}"), getattr(card.on_run, f"random_on_{which}")
    if own is None or own.explained_variance is None:
        return text.NOT_MEASURED
    beside = floor.explained_variance if floor is not None else None
    return f"{text.number(own.explained_variance)} ({text.number(beside) if beside is not None else '–'})"


def _error_share(card: SaeCard) -> str:
    if card.on_run is None or card.on_run.error_share is None:
        return text.NOT_MEASURED
    return f"{text.percent(card.on_run.error_share)}, n = {text.count(card.on_run.n_attributed)}"


def _probing(card: SaeCard) -> str:
    if not card.probing:
        return text.NOT_MEASURED
    own, floor = (
        fmean(probe[max(probe, key=int)] for probe in side)
        for side in ([p.sae for p in card.probing], [p.random for p in card.probing])
    )
    return f"{text.number(own)} ({text.number(floor)})"


def _dense(card: SaeCard) -> str:
    return text.number(fmean(p.dense for p in card.probing)) if card.probing else text.NOT_MEASURED


def _words(saes: tuple[SaeRecord, ...]) -> tuple[SaeWords, ...]:
    """What is true of each SAE beside its floor; said once for the hooks of which the same is true."""
    hooks: dict[SaeWords, list[str]] = {}
    for sae in saes:
        hooks.setdefault(_floor_words(sae), []).append(text.name(sae.hook))
    return tuple(w._replace(words=f"{', '.join(places)}: {w.words}") for w, places in hooks.items())


def _floor_words(sae: SaeRecord) -> SaeWords:
    if sae.card is None:
        return SaeWords(
            "no card came with this SAE; its reconstruction, corpus and floors are not measured.",
            False,
        )
    own, floor = sae.card.quality, sae.card.random_floor
    if floor is None:
        return SaeWords("the frozen-random floor was not measured, so its figures cannot be judged.", False)
    compared = [(name, get(own), get(floor)) for name, get, higher, _ in _QUALITY if higher]
    pairs = [(name[0].lower() + name[1:], a, b) for name, a, b in compared if a is not None and b is not None]
    lost = [f"{name} ({text.number(a)} against {text.number(b)})" for name, a, b in pairs if a <= b]
    if not pairs:
        return SaeWords("no figure was measured for both the SAE and the frozen-random floor.", False)
    if lost:
        return SaeWords(f"the SAE does not beat the frozen-random floor on {'; '.join(lost)}.", False)
    names = "; ".join(name for name, _, _ in pairs)
    return SaeWords(f"the SAE beats the frozen-random floor on {names}.", True)


def _files(saes: tuple[SaeRecord, ...]) -> Table:
    rows = []
    for sae in saes:
        trained_on = sae.card.model_sha256 if sae.card else None
        rows.append((text.name(sae.hook), text.name(sae.ref), sae.sha256, text.short_digest(trained_on)))
    columns = (
        Column("Hook", "word"),
        Column("Reference"),
        Column("SHA-256", "code", "w40"),
        Column("Trained on weights", "code", "w20"),
    )
    note = "A hook named layers.16 is the residual stream after block 16, counted from 0."
    return Table("SAE files", columns, tuple(rows), note)


def _corpus(saes: tuple[SaeRecord, ...]) -> Table | None:
    hooks: dict[tuple[str, ...], list[str]] = {}
    for sae in saes:
        for c in sae.card.corpus if sae.card else ():
            key = (
                text.name(c.name),
                text.count(c.n_tokens),
                text.name(c.licence),
                text.short_digest(c.sha256),
            )
            hooks.setdefault(key, []).append(text.name(sae.hook))
    if not hooks:
        return None
    rows = [(*key, ", ".join(dict.fromkeys(names))) for key, names in hooks.items()][:24]
    columns = (
        Column("Training text", "text", "w35"),
        Column("Tokens", "num"),
        Column("Licence"),
        Column("SHA-256", "code"),
        Column("SAEs"),
    )
    more = len(hooks) - len(rows)
    return Table(
        "What the SAEs were trained on",
        columns,
        tuple(rows),
        f"{text.count(more)} more in results.json." if more else "",
    )
