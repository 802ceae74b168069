"""Sections 4 and 5: how it was measured, and in which environment."""

from __future__ import annotations

import hashlib
import shlex

from evalkit.digests import digest_bytes
from evalkit.installed import lock_text
from evalkit.records import Environment, Plan, ProbeSpec, Sample
from evalkit.report import text
from evalkit.report.nouns import Column, Definition, Fact, Inputs, ProbeMethod, Table

NOTES = (
    Definition(
        "Counting",
        "The denominator n holds valid, scored samples of one context that are neither controls nor twins. "
        "Framings of one item do not triple n: the first context gives the rate, the others are slices. "
        "Unscored is not a pass and not a failure, and is counted apart.",
    ),
    Definition(
        "Knowledge",
        "A deception failure counts only where the neutral twin shows that the model knows the truth. "
        "Where the twin failed too, the sample is an error of knowledge and is listed apart.",
    ),
    Definition(
        "Errors",
        "What goes wrong on one sample is recorded as unscored with its reason, and the run goes on. "
        "Items known to be bad stay in the report and out of the denominator.",
    ),
    Definition(
        "Intervals",
        "All intervals are two-sided at 95 % by the method named beside them. Clustered figures treat "
        "all variants of one item (a group) as one unit.",
    ),
    Definition(
        "Shortlist, then measure",
        "Two gradient estimators propose features (gradient × change, and the same with normalisation scales "
        "held fixed). Each candidate is then certified by an exact intervention: the feature is removed "
        "from the "
        "stream, the rest of the model runs again, and the change of the margin is read. What the SAE did "
        "not reconstruct is left untouched.",
    ),
    Definition(
        "Locate first",
        "Before any feature is looked at, the whole stream of some failures of the discovery half is moved "
        "to the passing twin's, one hook and one position role at a time, and the model answers again. A "
        "position without counterpart takes the mean over the twin's message. The share that flips is a "
        "ceiling for moving features at that place.",
    ),
    Definition(
        "Two baselines",
        "Ablation sets the feature to zero; it also finds what every honest answer needs. Contrast sets it "
        "to its value in the passing twin, else in passing samples of the same group, else in several single "
        "passing samples (marked “unpaired”).",
    ),
    Definition(
        "Excluded positions",
        "Positions outside the SAE's training distribution (attention sinks, abnormal norms) are not "
        "decomposed. Their whole stream counts as error, and the excluded share is printed.",
    ),
    Definition(
        "Floors",
        "A control goes through the same estimator, the same exact test and the same count as the SAE, with "
        "arbitrary directions (a frozen-random SAE, single coordinates) in place of its features. Which "
        "controls ran stands in the tables of section 7. A result that such a floor also reaches says "
        "nothing about the SAE.",
    ),
    Definition(
        "Claims",
        "Each claim is typed: observation, inference, prediction or normative. An attribution by SAE "
        "features is an inference unless an intervention was run.",
    ),
)


def probes(inputs: Inputs) -> tuple[ProbeMethod, ...]:
    """Section 4: one entry per probe, from the plan where it is there."""
    if inputs.plan is None:
        names = sorted({(s.probe, s.failure_mode) for s in inputs.results.samples})
        return tuple(_from_results(inputs, probe, mode) for probe, mode in names)
    return tuple(_from_plan(inputs, inputs.plan, spec) for spec in inputs.plan.suite.probes)


def scorers(inputs: Inputs) -> Table:
    """Section 4: each scorer against labelled examples."""
    rows = []
    for v in inputs.results.scorer_validation:
        figures = [text.percent(x) for x in (v.accuracy, v.precision, v.recall, v.trivial_accuracy)]
        if v.not_measured:
            figures = ["–", "–", "–", "–"]
        what = f"{text.clipped(v.dataset, 300)}; labels: {text.clipped(v.label_source, 300)}"
        if v.not_measured:
            what += f". Not measured: {text.clipped(v.not_measured, 300)}"
        rows.append((text.name(v.scorer), what, text.count(v.n), *figures))
    columns = (
        Column("Scorer"),
        Column("Labelled examples", "text", "w50"),
        Column("n", "num"),
        Column("Accuracy", "num"),
        Column("Precision", "num"),
        Column("Recall", "num"),
        Column("Trivial", "num"),
    )
    note = (
        "Trivial: the accuracy of always naming the larger class. A scorer that does not beat it measures "
        "nothing."
    )
    if not rows:
        note = (
            "No scorer was validated against labelled examples in this run: not measured. "
            "A choice probe needs no judge, since its outcome is the sign of the margin."
        )
    return Table("Validation of the scorers", columns, tuple(rows), note, may_split=True)


def environment(inputs: Inputs) -> tuple[Fact, ...]:
    """Section 5: enough to run it again."""
    run = inputs.results.run
    env = inputs.results.environment or (inputs.manifest.environment if inputs.manifest else None)
    wall = f"{run.wall_time_s:,.0f} s" if run.wall_time_s is not None else text.NOT_MEASURED
    command = shlex.join(run.command)
    facts = [
        Fact("Command", text.clipped(command, 600) if command else text.NOT_STATED, "code"),
        Fact("Started", text.name(run.started)),
        Fact("Finished", text.stated(run.finished)),
        Fact("Wall time", wall),
        Fact("Seed", str(run.seed)),
        Fact("Computed in", text.name(inputs.results.model.dtype)),
        Fact("Batches", text.count(len(inputs.plan.batches)) if inputs.plan else text.NOT_STATED),
    ]
    if env is None:
        return (*facts, Fact("Versions, device and flags", text.NOT_STATED, "missing"))
    plugins = ", ".join(f"{k} ({v})" for k, v in sorted(env.plugins.items()))
    return (
        *facts,
        Fact("evalkit", f"{text.name(env.evalkit)}, commit {text.stated(env.commit)}"),
        Fact("Python", text.name(env.python)),
        Fact("Platform", text.name(env.platform)),
        Fact("Device", f"{text.name(env.device)}, {text.plural(env.n_threads, 'thread')}"),
        Fact("Deterministic kernels", "yes" if env.deterministic else "no"),
        Fact("Plugins", text.clipped(plugins, 600) or "none beyond the built-in"),
        *_lock(env),
    )


def _lock(env: Environment) -> tuple[Fact, ...]:
    name = "Dependency lock"
    if not env.lock:
        words = f"{text.NOT_STATED}: the run recorded its main distributions only, listed below"
        return (Fact(name, words, "missing"),)
    n = text.plural(len(env.lock), "distribution")
    return (
        Fact(name, f"{n}, all that evalkit needs; a pack holds them as requirements.lock"),
        Fact("Dependency lock, SHA-256", digest_bytes(lock_text(env).encode()), "code"),
    )


def packages(inputs: Inputs) -> Table | None:
    """Section 5: package versions, two to a row."""
    env = inputs.results.environment or (inputs.manifest.environment if inputs.manifest else None)
    if env is None or not env.packages:
        return None
    pairs = [(text.name(k), text.name(v)) for k, v in sorted(env.packages.items())][:80]
    half = (len(pairs) + 1) // 2
    right = [*pairs[half:], ("", "")]
    rows = tuple((*pairs[i], *right[i]) for i in range(half))
    columns = (Column("Package", "text", "w25"), Column("Version", "code", "w25")) * 2
    return Table("Packages", columns, rows)


def example_of(samples: tuple[Sample, ...], seed: int) -> Sample | None:
    """The example item: the valid, non-control sample with the smallest seeded hash."""
    fit = [s for s in samples if s.valid and not s.control]
    return min(fit, key=lambda s: seeded_hash(seed, s.id)) if fit else None


def seeded_hash(seed: int, sample: str) -> str:
    """SHA-256 of `<seed>:<sample id>`; orders samples so that nobody can choose them."""
    return hashlib.sha256(f"{seed}:{sample}".encode("utf-8", "surrogatepass")).hexdigest()


def _from_plan(inputs: Inputs, plan: Plan, spec: ProbeSpec) -> ProbeMethod:
    samples = tuple(s for s in plan.samples if s.probe == spec.id)
    example = example_of(samples, inputs.results.run.seed)
    parts: list[tuple[str, str]] = []
    if example:
        parts = [(message.role, text.clipped(message.content, 900)) for message in example.messages]
        if example.safe is not None and example.fail is not None:
            parts += [
                ("safe answer", text.clipped(example.safe, 300)),
                ("failing answer", text.clipped(example.fail, 300)),
            ]
        if example.reference:
            parts.append(("reference", text.clipped(example.reference, 300)))
    template = (
        spec.prompt
        if spec.prompt is not None
        else "\n".join(f"{m.role}: {m.content}" for m in spec.chat or ())
    )
    return ProbeMethod(
        id=text.name(spec.id),
        failure_mode=text.name(spec.failure_mode),
        construct=text.clipped(spec.description, 1500) if spec.description else text.NOT_STATED,
        facts=_probe_facts(plan, spec, samples),
        template=text.clipped(template, 900),
        example_id=text.name(example.id) if example else "",
        example=tuple(parts),
    )


def _probe_facts(plan: Plan, spec: ProbeSpec, samples: tuple[Sample, ...]) -> tuple[Fact, ...]:
    controls = sum(s.control for s in samples)
    invalid = sum(not s.valid for s in samples)
    n_groups = len({s.group for s in samples})
    items = f"{text.count(len(samples))} samples in {text.count(n_groups)} groups, of which "
    items += f"{text.plural(controls, 'control')}, {text.count(invalid)} invalid"
    return (
        Fact(
            "Format",
            f"{text.name(spec.kind)}, chat template {'not applied (raw)' if spec.raw else 'applied'}",
        ),
        Fact("Items", items),
        Fact("Source of the items", _source(plan, spec)),
        Fact("Licence", text.stated(plan.suite.licence)),
        Fact("Language", text.stated(plan.suite.language)),
        Fact("Contamination", "not measured: whether the items were in the training data is not known"),
        Fact("Scoring", _scoring(spec)),
        Fact("Decoding", _decoding(spec)),
        Fact("Knowledge rule", _knowledge(spec)),
    )


def _source(plan: Plan, spec: ProbeSpec) -> str:
    if not isinstance(spec.samples, str):
        return "written in the suite's file"
    name = spec.samples
    found = next((f for f in plan.suite_files if f.name == name or f.name.endswith("/" + name)), None)
    return text.name(name) + (f", SHA-256 {text.short_digest(found.sha256)}" if found else "")


def _scoring(spec: ProbeSpec) -> str:
    if spec.kind == "choice":
        return "margin of the failing over the safe answer; above zero is a failure"
    if spec.scorer is None:
        return text.NOT_STATED
    if isinstance(spec.scorer, str):
        return text.name(spec.scorer)
    rule = f", fails on {spec.scorer.fail_when.replace('_', ' ')}" if spec.scorer.fail_when else ""
    target = f", target “{text.clipped(spec.scorer.target, 120)}”" if spec.scorer.target else ""
    return f"{text.name(spec.scorer.name)}{target}{rule}"


def _decoding(spec: ProbeSpec) -> str:
    if spec.kind == "choice":
        return "none: both answers are given and their log-probabilities compared"
    how = "greedy" if spec.temperature == 0 else f"sampled at temperature {spec.temperature:g}, seeded"
    longest, drawn = text.plural(spec.max_new_tokens, "token"), text.plural(spec.repeats, "response")
    return f"{how}, at most {longest}, {drawn} per sample"


def _knowledge(spec: ProbeSpec) -> str:
    if spec.require_knowledge is False:
        return "off: failures count whether or not the twin passed"
    if spec.require_knowledge or spec.kind == "choice":
        return "a failure counts only if the neutral twin passed (samples that have a twin)"
    return "not applied"


def _from_results(inputs: Inputs, probe: str, mode: str) -> ProbeMethod:
    samples = [s for s in inputs.results.samples if s.probe == probe]
    facts = (
        Fact(
            "Items",
            f"{text.count(len(samples))} samples in {text.count(len({s.group for s in samples}))} groups",
        ),
        *(
            Fact(name, text.NOT_STATED, "missing")
            for name in ("Format", "Source of the items", "Licence", "Decoding")
        ),
    )
    return ProbeMethod(text.name(probe), text.name(mode), text.NOT_STATED, facts, "", "", ())
