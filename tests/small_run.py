"""The smallest run that has everything: one suite, five samples in three batches. No figure was measured."""

from __future__ import annotations

from collections.abc import Sequence

from evalkit.chain import UNCHAINED
from evalkit.records import (
    Attribution,
    Batch,
    ChatMessage,
    Circuit,
    CircuitNode,
    ContextResult,
    ErrorNode,
    FailureModeResult,
    Grade,
    InterventionRecord,
    ModelRecord,
    ModelRef,
    Necessity,
    Node,
    Outcome,
    Plan,
    ProbeSpec,
    Proportion,
    Response,
    Results,
    RunRecord,
    SaeCard,
    SaeQuality,
    SaeRecord,
    Sample,
    SampleResult,
    Score,
    Suite,
    SuiteRecord,
)
from evalkit.stats import wilson
from evalkit.store import Answered

DIGEST = "ab" * 32


def sample(name: str) -> Sample:
    return Sample(
        id=name,
        probe="p",
        failure_mode="f",
        group=name,
        messages=(ChatMessage(role="user", content="why?"),),
        fields={"id": name, "ünïcode": "\u2028 line separator"},
    )


def plan(n: int = 5, seed: int = 0) -> Plan:
    samples = tuple(sample(f"s{i}") for i in range(n))
    names = [s.id for s in samples]
    batches = tuple(Batch(id=f"b{i}", probe="p", samples=tuple(names[i : i + 2])) for i in range(0, n, 2))
    probe = ProbeSpec(
        id="p", failure_mode="f", kind="generate", samples=({"id": "s0"},), prompt="why?", scorer="refusal"
    )
    return Plan(
        suite=Suite(schema_version=1, id="small", version="1.0.0", model=ModelRef(ref="m"), probes=(probe,)),
        suite_sha256=DIGEST,
        suite_files=(),
        samples=samples,
        batches=batches,
        limit=None,
        seed=seed,
        model_ref="m",
        model_sha256=DIGEST,
        sae_sha256={},
        dtype="float32",
        held_out_groups=(),
        thresholds={},
        grid={},
        policy=None,
        n_earlier_runs=0,
    )


def answered(one: Sample) -> Answered:
    response = Response(
        sample=one.id, prompt_text="why?", n_prompt_tokens=2, text=f"{one.id} \u2028\n\x00=1+1"
    )
    return Answered(one, response, Score(outcome="fail", margin_nats=0.1))


def intervention(name: str, size: int, circuit: str | None = None) -> InterventionRecord:
    return InterventionRecord(
        sample=name,
        circuit=circuit,
        purpose="certify" if circuit is None else "necessity",
        nodes=("n",),
        baseline="ablation",
        control_kind="none",
        control_seed=None,
        selected=False,
        size=size,
        margin_before_nats=1.5,
        margin_after_nats=-0.1,
        outcome_after="pass",
        flipped=True,
        previous=UNCHAINED,
    )


# ------------------------------------------------------------------------------------------ results

SAE = SaeRecord(
    ref="m/layers.16",
    hook="layers.16",
    architecture="topk",
    d_sae=8,
    sha256=DIGEST,
    card=SaeCard(
        hook="layers.16",
        architecture="topk",
        d_model=4,
        d_sae=8,
        n_tokens_evaluated=1000,
        quality=SaeQuality(
            explained_variance=0.8,
            l0=4.0,
            ce_recovered_zero=None,
            ce_recovered_mean=None,
            dead_share=None,
        ),
    ),
)


def attributed(feature: float = 1.0, error: float = 1.0) -> Attribution:
    node = Node(
        id="n",
        hook="layers.16",
        feature=7,
        position=3,
        token="x",
        role="final",
        activation=1.0,
        effect_nats=feature,
        confirmed_nats=None,
        contrast_nats=None,
    )
    return Attribution(
        method="auto",
        no_attribution=None,
        nodes=(node,),
        errors=(ErrorNode(hook="layers.16", position=3, effect_nats=error),),
        error_share=error / (feature + error),
    )


def sample_result(
    i: int, outcome: Outcome, attribution: Attribution | None = None, mode: str = "f"
) -> SampleResult:
    return SampleResult(
        id=f"{mode}{i}",
        probe="p",
        failure_mode=mode,
        context="neutral",
        outcome=outcome,
        margin_nats=None,
        attribution=attribution,
        counted=outcome != "unscored",
    )


def mode_result(k: int, n: int, n_unscored: int = 0, mode: str = "f") -> FailureModeResult:
    interval = wilson(k, n)
    return FailureModeResult(
        id=mode,
        n=n,
        n_failed=k,
        n_unscored=n_unscored,
        n_invalid=0,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        ci_method="Wilson",
        by_context=(),
        circuits=(),
    )


def proportion(k: int, n: int) -> Proportion:
    interval = wilson(k, n)
    return Proportion(
        n=n,
        n_failed=k,
        rate=interval.estimate if interval else None,
        ci_low=interval.low if interval else None,
        ci_high=interval.high if interval else None,
        ci_method="Wilson",
    )


def context_result(context: str, k: int, n: int) -> ContextResult:
    interval = wilson(k, n)
    return ContextResult.model_validate_json(
        f'{{"context": "{context}", "n": {n}, "n_failed": {k}, "n_unscored": 0, "n_invalid": 0, '
        f'"rate": {k / n}, "ci_low": {interval.low if interval else 0}, '
        f'"ci_high": {interval.high if interval else 1}}}'
    )


def circuit(grade: Grade = "confirmed", k: int = 8, n: int = 10) -> Circuit:
    interval = wilson(k, n)
    assert interval is not None
    return Circuit(
        id="c1",
        failure_mode="f",
        level="mode",
        nodes=(
            CircuitNode(
                id="n",
                hook="layers.16",
                feature=7,
                role="final",
                effect_nats=1.0,
                label=None,
                label_source=None,
            ),
        ),
        edges=(),
        necessity=Necessity(
            n=n,
            n_flipped=k,
            rate=interval.estimate,
            ci_low=interval.low,
            ci_high=interval.high,
            ceiling=None,
            n_broken=0,
            collateral_kl=None,
        ),
        sufficiency=None,
        controls=(),
        grade=grade,
        flip_rate=None,
    )


def results(
    modes: Sequence[FailureModeResult] = (),
    samples: Sequence[SampleResult] = (),
    circuits: Sequence[Circuit] = (),
    *,
    saes: Sequence[SaeRecord] = (),
    complete: bool = True,
) -> Results:
    return Results(
        run=RunRecord(id="r1", started="t0", finished="t1", complete=complete, seed=0, command=("evalkit",)),
        suite=SuiteRecord(id="small", version="1.0.0", sha256=DIGEST),
        model=ModelRecord(
            ref="m",
            sha256=DIGEST,
            source="synthetic",
            quantisation=None,
            modality="text",
            n_parameters=1,
            dtype="float32",
        ),
        saes=tuple(saes),
        failure_modes=tuple(modes),
        samples=tuple(samples),
        circuits=tuple(circuits),
        claims=(),
        gates=(),
    )
