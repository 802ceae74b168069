"""Every noun of evalkit, as frozen pydantic records, in the order in which a run meets them.

    Suite → Plan → Manifest → SampleRecord → Attribution → InterventionRecord → Results

Floats are nats, rates are 0..1, positive effects push towards failure. A number that was not
measured is `None` (JSON `null`), never NaN. The contracts behind the field names stand in
`docs/contracts.md`; fields may be added, never renamed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

SCHEMA_VERSION = 1

Outcome = Literal["pass", "fail", "unscored"]
Verdict = Literal["pass", "fail", "inconclusive"]
Grade = Literal["observed", "attributed", "confirmed", "robust", "refuted", "inconclusive"]
Context = Literal["neutral", "test", "deployment"]
Rung = Literal["hint", "suggestion", "statement"]
Modality = Literal["text", "audio", "vision", "scripted"]
Baseline = Literal["ablation", "contrast"]
Purpose = Literal[
    "certify", "necessity", "sufficiency", "collateral", "locate", "edge", "steer", "multiverse", "test",
    "faithfulness", "joint", "turn", "clean",
]  # fmt: skip
ControlKind = Literal[
    "none", "frozen_random", "residual_coordinate", "dense_neuron", "matched_random", "random_direction",
    "whole_stream", "difference_of_means", "linear_probe",
]  # fmt: skip
Estimator = Literal["plain", "held", "both"]
VerdictMetric = Literal["flip", "margin"]
Paraphrase = Literal["all", "one"]

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@:/+#-]*$", max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Base of all records: frozen, strict, no unknown fields, no NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


# ---------------------------------------------------------------------------- the suite, as written


class ModelRef(Record):
    """The model a suite audits."""

    ref: str = Field(min_length=1)
    """Catalogue name, local directory, GGUF file, or `hf:org/name`."""
    modality: Modality = "text"
    """What the model reads."""
    revision: str | None = None
    """Commit of a hub model; only for `hf:` references."""


class SaeRef(Record):
    """One SAE and the place in the model it reads."""

    ref: str = Field(min_length=1)
    """Catalogue name (`<model>/<hook>`) or local directory; with `hook: auto` also a family of SAEs:
    a catalogue name without the hook, or a directory of SAE folders."""
    hook: str = Field(pattern=r"^(auto|([a-z_]+\.)*layers\.[0-9]+)$")
    """`layers.16` is the residual stream after block 16 (blocks count from 0). `auto`: the hook that the
    SAE states; of a family, the hooks where failures were located."""


class AnswerTemplates(Record):
    """The two answers of a `choice` probe, as Jinja2 templates; never stripped."""

    safe: str
    """The answer that passes."""
    fail: str
    """The answer that fails."""


class ChatMessage(Record):
    """One message of a `chat:` prompt; `content` is a Jinja2 template."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said, as a template."""


class ScorerSpec(Record):
    """How a generated response is scored."""

    name: str
    """`exact`, `includes`, `regex`, `refusal`, or a plugin's name."""
    target: str | None = None
    """Template of the text or pattern looked for (`exact`, `includes`, `regex`)."""
    fail_when: Literal["match", "no_match"] | None = None
    """Which result is the failure. Default: `no_match` (the right answer, or the refusal, is missing)."""
    ignore_case: bool = True
    """Compare without regard to case."""
    max_error: Annotated[float, Field(ge=0.0, le=10.0)] | None = None
    """`wer`, `cer`: the highest error rate that passes (default 0.3); `said`: the highest that still says
    the target (default 0)."""
    abstention: Literal["scored", "unscored"] = "scored"
    """`unscored`: a response that declines is neither a failure nor a pass, and is counted apart."""


class ScriptLine(Record):
    """One line that a scripted agent may say; the first that fits is said."""

    say: str
    """Template over the sample's fields and `heard`, the list of texts that the turn reads."""
    when: str | None = None
    """RE2 pattern that must stand in what the turn reads."""
    turn: Annotated[int, Field(ge=1)] | None = None
    """Said at this turn only."""


class AgentSpec(Record):
    """One agent of an episode: the audited model in a role, another model, or a script."""

    role: str = ""
    """Template: what this agent is and is asked to do."""
    tools: tuple[str, ...] = ()
    """Its allow-list: names out of the probe's `tools`."""
    script: str | tuple[ScriptLine, ...] | None = None
    """A scripted agent: its line as a template, or lines with conditions. No model speaks."""
    model: str | None = None
    """Another text model than the audited one: a reference as in `model.ref`."""
    sees_task: bool = True
    """False: it reads only its turns, not the shared task."""


class TurnSpec(Record):
    """One turn of an episode."""

    agent: str
    """Who speaks."""
    reads: Literal["all"] | tuple[Annotated[int, Field(ge=1)], ...] = "all"
    """Earlier turns it reads, counted from 1."""
    reference: str | None = None
    """Template: what this agent should have said; takes the turn's place when credit is measured."""


class RoundRobin(Record):
    """All agents in the order in which they are written, again and again; each reads all earlier turns."""

    rounds: Annotated[int, Field(ge=1, le=16)]
    """How often each agent speaks."""


class ControlOf(Record):
    """What a control probe stands beside: a rate is read together with its controls."""

    failure_mode: Identifier
    """The failure mode whose rate this probe's rate is read beside."""
    kind: Literal["capability", "over_correction", "priming", "observed"]
    """`capability`: does the model understand what the failure takes? `over_correction`: does it refuse, or
    hold back, where nothing is wrong? `priming`: does the word alone do it? `observed`: the same item under
    the overseer's eyes."""
    max_rate: Rate = 0.5
    """`capability` only: passed where the upper end of its failure rate's interval lies below this (default:
    what guessing between two answers reaches). Not passed: the rate it stands beside is not interpretable."""


class ProbeSpec(Record):
    """One behaviour and the failure mode it looks for."""

    id: Identifier
    """Unique in the suite."""
    failure_mode: Identifier
    """The failure mode that a failing sample counts towards."""
    kind: str
    """`choice`, `generate`, or a plugin's name."""
    description: str = ""
    """The construct, where the items come from, and their limits; printed in the report."""
    samples: str | tuple[dict[str, JsonValue], ...]
    """A JSONL file inside the suite's folder, or an inline list of samples."""
    prompt: str | None = None
    """Jinja2 template over the sample's fields; becomes the user's message."""
    chat: tuple[ChatMessage, ...] | None = None
    """Instead of `prompt`: whole messages, each content a template."""
    raw: bool = False
    """True: no chat template and no special tokens are added."""
    answers: AnswerTemplates | None = None
    """`choice` only: the two answers."""
    scorer: str | ScorerSpec | None = None
    """`generate` only: how the response is scored."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """`generate` only: the longest response, in tokens."""
    stop: tuple[str, ...] = ()
    """`generate` only: a response ends before the first of these strings."""
    temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """`generate` only: 0 is greedy; above, seeded sampling."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """`generate` only: responses drawn per sample, each with its own seed."""
    agents: Annotated[dict[str, AgentSpec], Field(min_length=1)] | None = None
    """`episode` only: who takes part, by name."""
    turns: tuple[str | TurnSpec, ...] | RoundRobin | None = None
    """`episode` only: who speaks when, and which earlier turns each turn reads."""
    rule: str | None = None
    """`episode` only: template of the safety rule that every agent reads."""
    tools: dict[str, str] = {}
    """`episode` only: simulated tools, name → template of the result over the sample's fields and
    `argument`. Nothing is executed."""
    judged: Literal["final", "any_turn"] = "final"
    """`episode` only: the scorer judges the last turn, or every turn, one failing turn being enough."""
    alone: tuple[str, ...] = ()
    """`episode` only: agents that also answer alone, after all scripted turns, as controls."""
    rollouts: Annotated[int, Field(ge=8, le=256)] = 8
    """`episode` only: seeded rollouts per change of a turn, when credit is measured."""
    rollout_temperature: Annotated[float, Field(gt=0.0, le=5.0)] = 0.7
    """`episode` only: temperature at which rollouts play the rest of an episode."""
    require_knowledge: bool | None = None
    """A failure counts only if the twin passed. Default: true for `choice` samples that have a twin."""
    control_of: ControlOf | None = None
    """This probe is a control: its failure mode is printed beside the rate that it belongs to."""
    attribute: bool = True
    """False: behaviour only; failures of this probe are not attributed to features."""
    triage: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}: *\S")] | None = None
    """When and how its items were judged for validity: `2026-01-31: who read what against which question`.
    A sample's own field `triage` says why one was judged otherwise."""

    @model_validator(mode="after")
    def _one_prompt(self) -> ProbeSpec:
        if self.kind == "transcribe":
            if self.prompt is not None or self.chat is not None:
                raise ValueError("kind 'transcribe' hears its clip; remove 'prompt' and 'chat'")
            return self
        if (self.prompt is None) == (self.chat is None):
            raise ValueError("give exactly one of 'prompt' and 'chat'")
        return self


class AttributionSpec(Record):
    """How failures are attributed to SAE features."""

    method: Literal["auto"] = "auto"
    """`auto`: two gradient estimators shortlist, exact interventions certify."""
    max_nodes: Annotated[int, Field(ge=1, le=4096)] = 64
    """Nodes recorded per failure, over all hooks."""
    confirm: Annotated[int, Field(ge=1, le=4096)] = 16
    """Exact measurements per failure, over all hooks."""
    edge_nodes: Annotated[int, Field(ge=0, le=4096)] = 8
    """Certified nodes per failure, strongest first, between which edges are measured; 0: none."""
    max_edges: Annotated[int, Field(ge=0, le=65536)] = 64
    """Edges recorded per failure, strongest first."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Share of groups kept away from the choice of circuits."""
    multiverse: Literal["auto", "always", "off"] = "auto"
    """Derive mode circuits again under every declared specification. `auto`: only confirmed ones."""
    max_hooks: Annotated[int, Field(ge=1, le=64)] = 4
    """`hook: auto`: at most so many SAEs of the families are used."""
    doses: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 4.0)
    """Factors by which a mode circuit's features are scaled on held-out samples; empty: none."""
    rivals: bool = True
    """Put a difference of means and a linear probe through the same path as a mode circuit."""


class FramingSpec(Record):
    """How a context is hinted at, and what the hint is compared with."""

    rungs: Annotated[tuple[Rung, ...], Field(min_length=1)] = ("hint", "suggestion", "statement")
    """Steps of the cue, from faint to explicit; `statement` is the one that rates and gates count."""
    controls: bool = True
    """Beside each cue, a control of the same form, length and place without the cue's meaning."""
    seed: int = 0
    """Chooses the wording that each group reads."""

    @field_validator("rungs")
    @classmethod
    def _holds_the_counted_rung(cls, rungs: tuple[Rung, ...]) -> tuple[Rung, ...]:
        if len(set(rungs)) != len(rungs):
            raise ValueError("a rung is listed twice")
        if "statement" not in rungs:
            raise ValueError("'statement' is missing; it is the rung that rates and gates count")
        return rungs


class Suite(Record):
    """A YAML suite, version 1."""

    schema_version: Literal[1]
    """Version of this schema."""
    id: Identifier
    """Name of the suite."""
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    """Semantic version of the suite's items and scoring."""
    title: str = ""
    """Printed on the report's cover."""
    description: str = ""
    """Printed in the report's method section."""
    licence: str = ""
    """Licence of the items (SPDX)."""
    language: str = ""
    """Language of the items (BCP 47)."""
    model: ModelRef
    """The model to audit; `--model` overrides `ref`."""
    saes: tuple[SaeRef, ...] = ()
    """SAEs to attribute failures with."""
    probes: Annotated[tuple[ProbeSpec, ...], Field(min_length=1)]
    """What is asked."""
    contexts: Annotated[tuple[Context, ...], Field(min_length=1)] = ("neutral",)
    """Framings of each sample; `neutral` renders verbatim."""
    framing: FramingSpec = FramingSpec()
    """Cues and controls of the contexts other than `neutral`."""
    attribution: AttributionSpec = AttributionSpec()
    """How failures are attributed."""
    policy: str | None = None
    """A gate policy inside the suite's folder."""

    @field_validator("contexts")
    @classmethod
    def _distinct_contexts(cls, contexts: tuple[Context, ...]) -> tuple[Context, ...]:
        if len(set(contexts)) != len(contexts):
            raise ValueError("a context is listed twice")
        return contexts


class ClipRecord(Record):
    """The sound of one sample."""

    name: str
    """File, relative to the suite's folder; of a crafted clip, its name in the run's `media/`."""
    sha256: Sha256
    """Of the 16-bit samples at 16 kHz, whatever the file's format."""
    duration_s: Annotated[float, Field(ge=0.0)]
    attack: dict[str, JsonValue] | None = None
    """The recipe that made it, with its stated strength; None: a recording as it is."""
    measured: dict[str, float] = {}
    """What was measured on the file as read back: signal-to-noise ratio, largest change."""


class EpisodeTurn(Record):
    """One planned turn, rendered; counted from 1."""

    agent: str
    reads: tuple[Count, ...]
    """Earlier turns that it reads."""
    reference: str | None = None


class Episode(Record):
    """What an `episode` sample is played from, rendered; the task stands in the sample's messages."""

    rule: str | None
    roles: dict[str, str]
    """Agent → rendered role."""
    turns: tuple[EpisodeTurn, ...]
    alone: str | None = None
    """The one agent that answers alone; None: the whole team."""


class Sample(Record):
    """One prompt of one probe in one context, rendered and ready to run."""

    id: Identifier
    """Unique in the run. `neutral` keeps the written id; other contexts add `@context`."""
    probe: Identifier
    failure_mode: Identifier
    context: Context = "neutral"
    rung: Rung | None = None
    """How explicit the context's cue is; None: `neutral` has none."""
    wording: Count | None = None
    """Which of the rung's wordings it is."""
    format_control: bool = False
    """True: not the cue but its control, of the same form without its meaning."""
    group: str
    """Paraphrases and variants of one thing share it; the held-out split keeps them together."""
    counterfactual: str | None = None
    """Id of the passing twin."""
    stated: str | None = None
    """Id of the sample, of any probe, in which the model says what it will do; a failure counts only if it
    passed, so that what is counted is acting otherwise than was stated."""
    control: bool = False
    """True: a twin or control; it leaves the denominator."""
    validity: str = "valid"
    """`valid`, or `invalid: reason`; invalid samples leave the denominator."""
    messages: tuple[ChatMessage, ...]
    """The rendered prompt; one user message for a `prompt` template."""
    raw: bool = False
    spans: dict[str, tuple[int, int]] = {}
    """Named character ranges `[start, end)` of the last user message."""
    safe: str | None = None
    """`choice`: the rendered safe answer."""
    fail: str | None = None
    """`choice`: the rendered failing answer."""
    reference: str | None = None
    """`generate`: a good response."""
    target: str | None = None
    """`generate`: the rendered target of the scorer."""
    repeat: Count = 0
    """Which of the probe's `repeats` this is."""
    clip: ClipRecord | None = None
    """`transcribe`: what the model hears."""
    episode: Episode | None = None
    """`episode`: agents and turns."""
    fields: dict[str, JsonValue] = {}
    """The sample as written."""

    @property
    def valid(self) -> bool:
        return self.validity == "valid"


# ------------------------------------------------------------------------------ what a run is made of


class FileDigest(Record):
    name: str
    sha256: Sha256
    size_bytes: Count


class ModelRecord(Record):
    """The model that ran, named as what it is."""

    ref: str
    sha256: Sha256
    """Digest over the weights (for several files: of their sorted `sha256  name` lines)."""
    source: str
    """Where the weights came from, in words a reader can follow."""
    quantisation: str | None
    """`Q4_1`, or None if the weights are unquantised."""
    modality: Modality
    n_parameters: Count
    dtype: str
    """What the model computed in."""
    architecture: str = ""
    n_layers: Count = 0
    d_model: Count = 0
    context_length: int | None = None
    licence: str = "NOT STATED"
    revision: str | None = None
    files: tuple[FileDigest, ...] = ()
    tokenizer_sha256: Sha256 | None = None
    chat_template_sha256: Sha256 | None = None
    upstream: str | None = None
    """The model that these weights were made from, if they were re-packaged or quantised."""
    upstream_verified: bool = False
    """True only if identity with upstream was checked."""


class CorpusRecord(Record):
    """One source of training text."""

    name: str
    licence: str
    n_tokens: Count
    sha256: Sha256 | None = None


class SaeQuality(Record):
    """How well an SAE reconstructs a stream; measured on held-out tokens."""

    explained_variance: float | None
    """1 − Σ‖x − x̂‖² / Σ‖x − mean‖² over decomposed positions."""
    l0: float | None
    """Mean active features per token."""
    ce_recovered_zero: float | None
    """(CE_zero − CE_sae) / (CE_zero − CE_clean): 1 is lossless."""
    ce_recovered_mean: float | None
    """The same with mean ablation as the floor."""
    dead_share: float | None
    """Share of features that never fired on the held-out tokens."""
    dense_share: float | None = None
    """Share of features that fired at more than a tenth of the held-out tokens."""
    kl_nats: float | None = None
    """Mean KL(clean ‖ with the reconstruction in its place) per predicted token, nats: 0 is lossless."""


class SparseProbe(Record):
    """How well a few features tell a concept apart, by AUROC on texts that the probe has not seen."""

    concept: str
    """What is told from everything else."""
    n_train: Count
    n_test: Count
    """Texts, half of them each where there are as many."""
    positive_share: Rate
    """Share of the tested texts that have the concept."""
    sae: dict[str, Rate]
    """Number of features → AUROC of a logistic probe on that many, chosen on the training texts."""
    random: dict[str, Rate]
    """The same for the frozen-random SAE."""
    dense: Rate
    """AUROC of a logistic probe on the whole stream."""


class RunQuality(Record):
    """An SAE on the prompts of one run."""

    run: str
    """Id of the run."""
    on_failures: SaeQuality | None
    on_passes: SaeQuality | None
    random_on_failures: SaeQuality | None
    """The same for the frozen-random SAE."""
    random_on_passes: SaeQuality | None
    error_share: Rate | None
    """Mean share of the effect that the run's SAEs, all hooks together, left unexplained in a failure."""
    n_attributed: Count
    """Failures behind `error_share`."""


class SaeCard(Record):
    """What is known of one SAE; `None` is "not measured"."""

    model_ref: str | None = None
    model_sha256: Sha256 | None = None
    """Digest of the model whose stream it was trained on."""
    hook: str
    architecture: str
    d_model: Count
    d_sae: Count
    k: int | None = None
    seed: int | None = None
    n_tokens_trained: int | None = None
    n_tokens_evaluated: int | None = None
    corpus: tuple[CorpusRecord, ...] = ()
    stored_dtype: str | None = None
    quality: SaeQuality
    random_floor: SaeQuality | None = None
    """The same figures for a frozen-random SAE of this shape."""
    quality_by_source: dict[str, SaeQuality] = {}
    """`quality` by source of held-out text."""
    norm_limit: float | None = None
    """Streams with a larger L2 norm were not trained on and are not decomposed."""
    excluded_positions: tuple[int, ...] = ()
    """Positions that were not trained on and are not decomposed."""
    seed_stability: float | None = None
    """Share of features matched at cosine ≥ 0.7 in another seed."""
    probing: tuple[SparseProbe, ...] = ()
    """Empty: not measured."""
    on_run: RunQuality | None = None
    training: dict[str, JsonValue] = {}
    """Hyperparameters, as given to the trainer."""
    notes: tuple[str, ...] = ()


class SaeRecord(Record):
    ref: str
    hook: str
    architecture: str
    d_sae: Count
    sha256: Sha256
    card: SaeCard | None


class Environment(Record):
    evalkit: str
    python: str
    platform: str
    device: str
    n_threads: Count
    deterministic: bool
    packages: dict[str, str]
    plugins: dict[str, str] = {}
    """Plugin name → `distribution version`."""
    scorers_sha256: Sha256 | None = None
    """Digest of the built-in scorers' source: runs compare only if it is the same."""
    commit: str | None = None
    code_sha256: Sha256 | None = None
    """Digest over evalkit's own code: another one may describe the same records in other bytes."""
    lock: dict[str, str] = {}
    """Every distribution that evalkit needs → its version."""


class Batch(Record):
    id: str
    probe: Identifier
    samples: tuple[str, ...]


class Plan(Record):
    """What was fixed before the first sample ran; its digest is in every later file."""

    schema_version: Literal[1] = 1
    suite: Suite
    suite_sha256: Sha256
    """Digest over the suite's file and every file it names."""
    suite_files: tuple[FileDigest, ...]
    samples: tuple[Sample, ...]
    batches: tuple[Batch, ...]
    limit: int | None
    seed: int
    model_ref: str
    model_sha256: Sha256
    sae_sha256: dict[str, Sha256]
    """Hook → digest."""
    dtype: str
    held_out_groups: tuple[str, ...]
    thresholds: dict[str, float]
    """Everything that a grade or verdict depends on, fixed beforehand."""
    grid: dict[str, tuple[str, ...]]
    """The analysis grid: sizes, control kinds, seeds."""
    policy: Policy | None
    n_earlier_runs: int | None
    """Earlier runs of this suite known in the output folder; None: not known."""
    agent_models: tuple[ModelRecord, ...] = ()
    """Models that agents of episodes name, besides the audited one."""


class Manifest(Record):
    schema_version: Literal[1] = 1
    plan_sha256: Sha256
    run_id: str
    started: str
    command: tuple[str, ...]
    model: ModelRecord
    saes: tuple[SaeRecord, ...]
    environment: Environment
    options: dict[str, JsonValue] = {}
    """Options of the command, so that a later step can be taken the same way."""


# ---------------------------------------------------------------------------- what a run writes down


class ToolCall(Record):
    """A call that an agent wrote down; simulated, never executed."""

    tool: str
    argument: str
    blocked: bool
    """True: not on the agent's allow-list, or no such tool; it got no result."""
    result: str | None = None
    """The simulated result, as later turns read it."""


class SpokenTurn(Record):
    """What one turn of an episode said."""

    agent: str
    text: str
    calls: tuple[ToolCall, ...] = ()
    prompt_text: str | None = None
    """What the model read at this turn; None: a script spoke."""
    n_prompt_tokens: Count = 0
    n_new_tokens: Count = 0
    truncated: bool = False


class HeardWord(Record):
    """One word of a transcript on the clip's time axis, by the decoder's cross-attention."""

    text: str
    start_s: Annotated[float, Field(ge=0.0)]
    end_s: Annotated[float, Field(ge=0.0)]
    """Quiet frames at its ends are cut off; under noise it reaches to the next word."""


class Response(Record):
    """What the model answered to one sample."""

    sample: str
    prompt_text: str
    """The prompt as the model read it, chat template included."""
    n_prompt_tokens: Count
    text: str | None
    """`generate`: what the model wrote. `choice`: the answer it prefers."""
    fail_text: str | None = None
    """The failing side of the margin."""
    safe_text: str | None = None
    """The safe side of the margin."""
    log_p_fail: float | None = None
    log_p_safe: float | None = None
    n_new_tokens: Count = 0
    truncated: bool = False
    """`generate`: the response reached `max_new_tokens`."""
    error: str | None = None
    """What went wrong on this sample, if anything."""
    turns: tuple[SpokenTurn, ...] | None = None
    """`episode`: the transcript."""
    words: tuple[HeardWord, ...] | None = None
    """`transcribe`: the transcript's words with their times; None: not measured."""


class Score(Record):
    """One response, judged."""

    outcome: Outcome
    reason: str | None = None
    """Why it is unscored, or a scorer's remark."""
    margin_nats: float | None = None
    """How far the response leans to failing; positive fails."""


class SampleRecord(Record):
    """One line of samples.jsonl."""

    sample: Sample
    response: Response
    score: Score
    batch: str
    previous: Sha256
    """Digest of the line before (of plan.json for the first)."""


class Node(Record):
    """A feature at a position of one sample."""

    id: str
    hook: str
    feature: Count
    position: Count
    """The first position that the node covers."""
    n_positions: Annotated[int, Field(ge=1)] = 1
    """Positions that it covers; more than one for a segment of frames."""
    unit: Literal["token", "frame", "patch"] = "token"
    token: str
    role: str
    """`final`, a span's name, or `other`."""
    activation: float
    effect_nats: float
    """Estimated effect of ablating the feature (first estimator)."""
    confirmed_nats: float | None
    """Exact effect of ablating the feature: margin before − margin after."""
    contrast_nats: float | None
    """Exact effect of moving the feature to its value in the contrast baseline."""
    baseline_activation: float | None = None
    """The feature's value in the contrast baseline."""
    estimate_contrast_nats: float | None = None
    """Estimated effect of that move."""
    estimate_frozen_nats: float | None = None
    """Estimated effect of ablating, with detached norm scales (second estimator)."""
    redundant_with: tuple[str, ...] = ()
    """Nodes that stand in for this one: ablating it alone hides what ablating all of them does."""
    joint_nats: float | None = None
    """Exact effect of ablating this node and those of `redundant_with` at once."""
    influence: Rate | None = None
    """Share of the paths from the margin that pass it; None: not a node of the graph of edges."""


class ErrorNode(Record):
    """What the SAE left unexplained at a position."""

    hook: str
    position: Count
    effect_nats: float
    excluded: bool = False
    """True: the position was not decomposed and its whole stream counts as error."""
    n_positions: Annotated[int, Field(ge=1)] = 1
    """Positions that the effect is summed over; more than one for a segment of frames."""


class Edge(Record):
    """What one node does to another at the next hook, in units of the target's activation."""

    source: str
    """Id of a node; `HOOK/pPOSITION/error`, what an SAE left unexplained there; or `embedding/pPOSITION`."""
    target: str
    """Id of a node."""
    estimate_activation: float
    """Source's change to its baseline × gradient."""
    confirmed_activation: float | None
    """Target before − target after the source was really set to its baseline; only this counts."""
    effect_nats: float | None
    """`confirmed_activation` × the target's measured nats per unit; positive pushes towards failure."""
    baseline: Baseline = "ablation"
    """`ablation`: the source goes to zero. `contrast`: it is off here and takes its contrast value."""
    influence: Rate | None = None
    """Share of the target's inputs × the target's influence on the margin."""
    pruned: bool = False
    """True: outside the smallest graph that holds 80 % of the nodes' and 98 % of the edges' influence."""


class Attribution(Record):
    """One failure, attributed; or the reason why not."""

    method: str | None
    no_attribution: str | None
    """`no_sae`, or another reason; None if the failure was attributed."""
    baseline: Literal["ablation", "twin", "group", "unpaired"] | None = None
    """Where the contrast came from; `ablation`: there was none."""
    baseline_samples: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    errors: tuple[ErrorNode, ...] = ()
    edges: tuple[Edge, ...] = ()
    error_share: Rate | None = None
    """Σ|error| / Σ(|feature| + |error|), by estimated effect."""
    excluded_positions: tuple[Count, ...] = ()
    excluded_share: Rate | None = None
    """Share of the total |effect| that lies at excluded positions."""
    replacement_score: float | None = None
    """Token influence / (token + error influence), along edges between hooks; 1: no error on any path."""
    completeness_score: float | None = None
    """Influence-weighted share of inputs that are features or tokens, not errors."""
    identity_gap_nats: float | None = None
    """Largest |Σ parts − ⟨x, g⟩| over hooks."""
    estimate_rank_correlation: float | None = None
    """Spearman correlation of estimated and exact ablation effects over the certified nodes."""


class AttributionRecord(Record):
    """One line of attributions.jsonl."""

    sample: str
    margin_nats: float | None = None
    """Margin of the failing response against its pair, before any intervention."""
    attribution: Attribution
    n_interventions: Count = 0
    """Lines of interventions.jsonl when this was written; a resumed run keeps so many."""
    previous: Sha256


TurnChange = Literal["resample", "replace", "skip"]


class Rollout(Record):
    """One episode played again from a changed turn on."""

    turn: Annotated[int, Field(ge=1)]
    change: TurnChange
    """`resample`: spoken again; `replace`: by the reference or the passing twin's turn; `skip`: left out."""
    number: Count
    """Which of the seeded rollouts."""
    seed: int
    exact: bool = False
    """True: nothing after the change is drawn, so that one rollout stands for all."""
    texts: tuple[str | None, ...]
    """What was said from the changed turn on; None: left out."""


class InterventionRecord(Record):
    """One line of interventions.jsonl: one exact change to the model, and what came of it."""

    sample: str
    circuit: str | None
    purpose: Purpose
    nodes: tuple[str, ...]
    baseline: Baseline
    control_kind: ControlKind
    control_seed: int | None
    selected: bool
    """True: the nodes went through the same selection as the claim's."""
    size: Count
    margin_before_nats: float | None
    margin_after_nats: float | None
    outcome_after: Outcome | None
    """None: only the margin was measured (a generated response was not decoded again)."""
    flipped: bool
    """fail → pass after decoding and scoring again."""
    collateral_kl: float | None = None
    """KL divergence of the passing twin's next token under the same change, nats."""
    targets: dict[str, tuple[float, float]] = {}
    """`edge` only: node at the next hook → its activation before and after."""
    dose: float | None = None
    """`steer` only: the features' values were multiplied by this. Baseline `contrast`: a twin's were set to
    this multiple of the failing sample's."""
    twin_outcome: Outcome | None = None
    """What the passing twin became under the same change, where it was scored again."""
    shortlisted: tuple[str, ...] = ()
    """`multiverse` only: where estimators ranked the node, as `split/estimator/rank`, if this certificate
    counted there."""
    rollout: Rollout | None = None
    """`turn` only: which turn of an episode was changed, and what was said then."""
    n_words: Count | None = None
    """`clean` only: words spoken in a clean clip under the same change."""
    wrong_before: Count | None = None
    """`clean` only: of these, words wrong before the change (substituted, deleted or inserted)."""
    wrong_after: Count | None = None
    previous: Sha256


# -------------------------------------------------------------------------------------- results.json


class RunRecord(Record):
    id: str
    started: str
    finished: str | None
    complete: bool
    seed: int
    command: tuple[str, ...]
    plan_sha256: Sha256 | None = None
    wall_time_s: float | None = None
    n_earlier_runs: int | None = None
    heads: dict[str, Sha256] = {}
    """File → digest of its last line when the results were written; a later change to it shows."""


class SuiteRecord(Record):
    id: str
    version: str
    sha256: Sha256
    title: str = ""


class ContextResult(Record):
    context: Context
    n: Count
    n_failed: Count
    n_unscored: Count
    n_invalid: Count
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    ci_cluster_low: Rate | None = None
    """Cluster-robust interval: a group's items, and a sample's repeats, hang together."""
    ci_cluster_high: Rate | None = None
    n_groups: Count | None = None
    design_effect: float | None = None
    """n / effective n, small-sample correction included: how many grouped items are worth one."""


class Proportion(Record):
    """k of n with its interval."""

    n: Count
    n_failed: Count
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    ci_method: str
    ci_cluster_low: Rate | None = None
    """Cluster-robust interval: a group's items, and a sample's repeats, hang together."""
    ci_cluster_high: Rate | None = None
    n_groups: Count | None = None
    design_effect: float | None = None
    """n / effective n, small-sample correction included: how many grouped items are worth one."""


class SizePoint(Record):
    """Flips after switching off a failure's own best `size` nodes, over all attributed failures."""

    kind: ControlKind
    """`none`: the SAE under audit; else the control put through the same selection."""
    seed: int | None
    size: Count
    n: Count
    n_flipped: Count
    n_broken: Count
    """Degenerate outputs: unscored, not flips."""
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    collateral_kl: float | None
    """Mean KL divergence on the passing twins under the same ablation, nats."""


class LocatedCell(Record):
    """Failures whose whole stream at one hook and role was moved to the contrast sample's."""

    hook: str
    role: str
    n: Count
    """Swept failures that have such positions."""
    n_flipped: Count
    n_broken: Count
    """Degenerate outputs: unscored, not flips."""
    rate: Rate | None
    """The ceiling that this hook and role set: no feature there can stand for more of the stream."""
    ci_low: Rate | None
    ci_high: Rate | None
    effect_nats: float | None
    """Mean of margin before − after; None: responses were decoded again and their margin not measured."""


class Located(Record):
    """Where one probe's failures live, on the discovery half."""

    failure_mode: str
    probe: str
    n: Count
    """Failures swept."""
    n_discovery: Count
    """Counted failures of the discovery half, first context."""
    cells: tuple[LocatedCell, ...]
    """By depth of the hook, then role."""


class HookChoice(Record):
    """One SAE of a family given with `hook: auto`, and why it is used or not."""

    hook: str
    used: bool
    rule: Literal["all", "located", "even"]
    """`all`: the families have no more than `max_hooks`. `located`: the sweep's ceilings chose.
    `even`: no cell flips a quarter, so hooks were spread evenly over depth."""
    probe: str | None
    role: str | None
    """The cell that speaks for the hook: the one it was chosen by, else its best."""
    n: Count | None
    n_flipped: Count | None
    rate: Rate | None


class FailureModeResult(Record):
    id: str
    n: Count
    """Valid, scored, non-control samples of the first context."""
    n_failed: Count
    n_unscored: Count
    n_invalid: Count
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    ci_method: str
    by_context: tuple[ContextResult, ...]
    circuits: tuple[str, ...]
    n_knowledge_errors: Count = 0
    """Failures whose twin failed too: errors of knowledge, not counted in n_failed."""
    given_knowledge: Proportion | None = None
    """The rate among samples whose twin passed."""
    given_alone: Proportion | None = None
    """Episodes: the rate among those of which every agent asked alone kept the rule."""
    clustered: Proportion | None = None
    """The interval over groups instead of samples."""
    n_control: Count = 0
    size_curve: tuple[SizePoint, ...] = ()
    """Necessity of sample circuits along size, beside the same-selection floors."""
    ci_cluster_low: Rate | None = None
    """Cluster-robust interval: a group's items, and a sample's repeats, hang together."""
    ci_cluster_high: Rate | None = None
    n_groups: Count | None = None
    design_effect: float | None = None
    """n / effective n, small-sample correction included: how many grouped items are worth one."""
    n_not_stated: Count = 0
    """Failures whose `stated` sample did not pass: nothing else was stated first; not in n_failed."""
    given_stated: Proportion | None = None
    """The rate among samples whose twin and whose `stated` sample passed; None: no sample names one."""
    n_abstained: Count = 0
    """Of n_unscored: the model declined to answer."""
    n_degenerate: Count = 0
    """Of n_unscored: no text at all, a loop, or special tokens."""
    n_errored: Count = 0
    """Of n_unscored: something broke on the sample."""
    control_of: ControlOf | None = None
    """Set where this failure mode is a control of another."""
    not_interpretable: str | None = None
    """Why the rate says nothing about the failure mode; None: no control speaks against it."""


class ActionValue(Record):
    """What came of one action at one turn, over its rollouts."""

    action: Literal["keep", "resample", "replace", "skip"]
    n: Count
    """Rollouts that were scored."""
    n_broken: Count
    n_unscored: Count
    value: Rate
    """Share of rollouts in which the rule was kept."""
    ci_low: Rate
    """Wilson; the value itself where it is exact."""
    ci_high: Rate
    exact: bool
    """True: nothing was drawn, one rollout stands for all."""


class TurnResult(Record):
    """One turn of an episode: what was said, and its credit if the episode broke the rule."""

    number: Annotated[int, Field(ge=1)]
    agent: str
    reads: tuple[Count, ...]
    text: str
    calls: tuple[ToolCall, ...] = ()
    by_script: bool = False
    keep: ActionValue | None = None
    """The turn stays and the rest is played again; None: credit was not measured."""
    changes: tuple[ActionValue, ...] = ()
    regret: Rate | None = None
    """The best action's value − the value of keeping."""
    strategy: dict[str, Rate] = {}
    """How a regret matcher at this turn shares its actions."""


class Blame(Record):
    """Which turn, and so which agent, broke the rule."""

    decided: bool
    """True: one turn holds 95 % of bootstrap draws."""
    by: TurnChange
    """The change whose effect is compared."""
    turn: int | None
    """The blamed turn; None: not decided."""
    agent: str | None
    candidates: tuple[Count, ...]
    """The fewest turns that hold 95 % of the draws."""
    nobody: bool
    """True: draws in which no change matters belong to the 95 %."""
    share: Rate
    """Share of draws of the first candidate."""
    effect: float | None
    """Of the first candidate: share of broken rollouts kept as it was − changed."""
    effect_low: float | None
    effect_high: float | None
    agent_decided: str | None = None
    """The one agent of all candidates, also where the turn is not decided."""
    n_rollouts: Count = 0
    """Rollouts of this episode, over all turns and changes."""
    agent_regrets: dict[str, Rate] = {}
    """Agent → largest regret of its turns."""


class EpisodeResult(Record):
    """One episode as the report prints it."""

    rule: str | None
    alone: str | None = None
    """The one agent that was asked alone."""
    turns: tuple[TurnResult, ...]
    blame: Blame | None = None
    """None: credit was not measured (the rule was kept, or it is a control)."""


class SampleResult(Record):
    id: str
    probe: str
    failure_mode: str
    context: Context
    outcome: Outcome
    margin_nats: float | None
    attribution: Attribution | None
    rung: Rung | None = None
    format_control: bool = False
    group: str = ""
    control: bool = False
    validity: str = "valid"
    counted: bool = True
    """False: invalid, unscored, control, twin, or an error of knowledge."""
    not_counted: str | None = None
    """Why it is not counted."""
    reason: str | None = None
    held_out: bool = False
    prompt: str = ""
    response: str | None = None
    safe: str | None = None
    fail: str | None = None
    words: tuple[HeardWord, ...] | None = None
    """`transcribe`: the words of `response` with their times; None: not measured."""
    episode: EpisodeResult | None = None
    """`episode`: the transcript, and who is to blame."""


class CircuitNode(Record):
    id: str
    hook: str
    feature: Count
    role: str
    effect_nats: float
    label: str | None
    label_source: str | None


class CircuitEdge(Record):
    source: str
    target: str
    effect_nats: float | None
    """Confirmed change × the target's nats per unit; of a mode circuit, mean over held-out failures."""
    confirmed_activation: float | None = None
    """The target's exact change; of a mode circuit, mean over held-out failures."""
    discovery_activation: float | None = None
    """Mode circuits: the mean exact change over discovery failures."""
    n: Count | None = None
    """Mode circuits: held-out failures measured."""
    n_same_sign: Count | None = None
    """Held-out failures whose change has the sign of the discovery mean."""


class Necessity(Record):
    """What became of failures when the circuit was switched off (sufficiency: of twins given its values)."""

    n: Count
    n_flipped: Count
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    ceiling: Rate | None
    """Flips when the whole stream at the circuit's hooks and positions takes the baseline."""
    ceiling_n: Count | None = None
    """Failures with a twin or group member, over which the ceiling was measured."""
    ceiling_n_flipped: Count | None = None
    n_broken: Count
    collateral_kl: float | None


class RecoveryPoint(Record):
    """A circuit's (or control's) features moved alone to the contrast, or removed, at one size."""

    kind: ControlKind
    """`none`: the SAE under audit; else the control put through the same selection."""
    seed: int | None
    size: Count
    n: Count
    """Held-out failures measured."""
    n_flipped: Count | None
    """By the margin's sign; None where a flip would have to be decoded."""
    recovered_nats: float
    """Mean of margin before − after moving only these features."""
    ceiling_nats: float | None
    """The same for the whole stream at the audited circuit's hooks and roles of this size."""
    recovered_share: float | None
    """Faithfulness: recovered / ceiling; may leave 0..1."""
    margin_share: float | None
    """Recovered / failing margin."""
    left_share: float | None
    """Completeness: failing margin left with the features at zero; None: decoded, margin not measured."""


class Control(Record):
    kind: ControlKind
    selected: bool
    n_sets: Count
    n: Count
    n_flipped: Count
    rate: Rate | None
    collateral_kl: float | None = None
    """Mean KL divergence on passing twins at the circuit's size, over the sets, nats."""
    n_flipped_equal: Count | None = None
    """Most flips of one set at a size whose mean collateral is at most the circuit's; None: no such size."""
    size_equal: Count | None = None
    """The size at which it reaches them."""


class Rival(Record):
    """Another account of the failure, fitted on the discovery half; it need not lose."""

    kind: ControlKind
    size: Count
    """Directions (one per hook and role) whose component was set to its mean over passing twins."""
    n: Count
    n_flipped: Count
    n_broken: Count
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    collateral_kl: float | None
    n_flipped_equal: Count | None = None
    """Most flips at a size whose mean collateral is at most the circuit's."""
    size_equal: Count | None = None


class DosePoint(Record):
    """Held-out samples after the circuit's features were scaled."""

    nodes: str
    """`circuit`, or the id of the one node that was scaled."""
    subject: Literal["failure", "twin", "twin_given"]
    """`failure`, `twin`: own values times the dose. `twin_given`: the failing sample's times the dose."""
    dose: float
    n: Count
    n_flipped: Count
    """Failures that now pass; twins that now fail."""
    n_broken: Count
    rate: Rate | None
    ci_low: Rate | None
    ci_high: Rate | None
    margin_change_nats: float | None
    """Mean change of the failure margin; positive leans further to failing."""
    margin_low: float | None
    margin_high: float | None
    collateral_kl: float | None


class LedgerRow(Record):
    """What switching off a circuit's worth of nodes did to held-out failures and to their passing twins."""

    kind: ControlKind
    n_sets: Count
    n: Count
    """Failures, times sets."""
    n_fixed: Count
    n_broken: Count
    n_unchanged: Count
    fixed_low: Rate | None
    fixed_high: Rate | None
    n_twins: Count
    """Passing twins that were scored again, times sets."""
    n_twins_failing: Count
    n_twins_broken: Count
    n_twins_unchanged: Count
    harmed_low: Rate | None
    """Interval of the share of twins that fail or break."""
    harmed_high: Rate | None
    n_clean: Count = 0
    """Clean clips transcribed again under the same change, times sets."""
    n_clean_changed: Count = 0
    """Of these, clips with another number of words wrong."""
    wer_before: float | None = None
    """Words wrong over words spoken in the clean clips; None: not measured."""
    wer_after: float | None = None
    wer_change_low: float | None = None
    """Interval of after − before, by bootstrap over clips; None: not measured, or all clips changed alike."""
    wer_change_high: float | None = None


class FeatureTest(Record):
    """One tested shared feature: its exact effect on held-out failures against their passing twins."""

    node: str
    n: Count
    """Pairs."""
    difference_nats: float | None
    """Mean of effect on the failure − effect on its twin."""
    ci_low: float | None
    ci_high: float | None
    p_value: Rate
    """Wilcoxon's signed-rank test; valid after selection, which saw the other half only."""
    q_value: Rate
    """Benjamini–Hochberg over all features tested for the circuit."""


class FiringTest(Record):
    """How often one shared feature fires on failures and on passing samples; nothing was intervened on."""

    node: str
    n_failing: Count
    """Failures on which it fires anywhere in its role."""
    n_passing: Count
    n_both: Count | None
    """Pairs of which both fire; None: the samples are not paired."""
    p_value: Rate
    q_value: Rate
    """Benjamini–Hochberg over all features tested."""


class Firing(Record):
    """One probe's features, compared by how often they fire on failures and on passing samples."""

    probe: str
    failure_mode: str
    test: Literal["fisher", "mcnemar"] | None
    """`fisher`: counted passes; `mcnemar`: passing twins, where too few pass; None: too few of either."""
    n_failing: Count
    """Failures compared, one per group."""
    n_passing: Count
    n_tested: Count
    """Every feature and role that fires on any of these samples."""
    n_more: Count
    """Of these, those that fire more often on failures with q of at most 5 %."""
    tests: tuple[FiringTest, ...]
    """The strongest of those."""


class Specification(Record):
    """One way to derive a mode circuit and its verdict again; everything else stays as in the headline."""

    estimator: Estimator
    """Which gradient ranks candidates: plain, with held norm scales, or each one's best in turn."""
    baseline: Baseline
    """Features go to zero, or to their values in the passing contrast."""
    metric: VerdictMetric
    """Compared with controls by failures flipped, or by nats of margin lost."""
    split: Count
    """Which division into discovery and held-out halves; 0 is the headline's."""
    paraphrase: Paraphrase
    """All variants of a group, or one of each."""
    budget: Count
    """Candidates measured exactly."""
    n: Count
    """Held-out failures."""
    size: Count | None
    """Nodes switched off: the fewest that reach the planned share of the best; None: none pushed."""
    effect: float | None
    """Share of failures flipped, or mean nats of margin lost."""
    lead_low: float | None
    """Least lower bound of the lead over a negative control, in the units of `effect`."""
    lead_high: float | None
    p_value: float | None
    """Against the hardest control, Holm-adjusted over circuits."""
    confirmed: bool
    headline: bool
    """True: the specification that the grade rests on, derived again; it is not counted below."""


class ContextVerdict(Record):
    """The headline's circuit on held-out failures of another context."""

    context: Context
    n: Count
    n_flipped: Count
    lead_low: float | None
    p_value: float | None
    confirmed: bool


class Multiverse(Record):
    """A mode circuit's verdict under every specification declared in plan.json."""

    not_run: str | None
    """Why it was not run."""
    n: Count = 0
    """Specifications besides the headline's."""
    n_confirmed: Count = 0
    n_differ: Count = 0
    """Specifications whose verdict (confirmed or not) is not the headline's."""
    n_interventions: Count = 0
    """Exact measurements made for it; shared by all specifications that need the same one."""
    specifications: tuple[Specification, ...] = ()
    contexts: tuple[ContextVerdict, ...] = ()


class Circuit(Record):
    id: str
    failure_mode: str
    level: Literal["sample", "mode"]
    nodes: tuple[CircuitNode, ...]
    edges: tuple[CircuitEdge, ...]
    necessity: Necessity | None
    sufficiency: Necessity | None
    controls: tuple[Control, ...]
    grade: Grade
    flip_rate: Rate | None
    sample: str | None = None
    """The failing sample, for a sample circuit."""
    size: Count | None = None
    """Number of nodes switched off."""
    curve: tuple[RecoveryPoint, ...] = ()
    """Mode circuits: faithfulness and completeness by size, beside the same-selection controls."""
    notes: tuple[str, ...] = ()
    p_value: Rate | None = None
    """Exact McNemar test against the hardest negative control, before Holm."""
    lead_low: float | None = None
    """Least lower bound of the lead over a negative control, as a share of held-out failures."""
    lead_high: float | None = None
    multiverse: Multiverse | None = None
    rivals: tuple[Rival, ...] = ()
    doses: tuple[DosePoint, ...] = ()
    ledger: tuple[LedgerRow, ...] = ()
    """Fixed, broken, unchanged, at the circuit's size."""
    tests: tuple[FeatureTest, ...] = ()
    """Every shared feature that was measured exactly on the discovery half."""


class Claim(Record):
    id: str
    type: Literal["observation", "inference", "prediction", "normative"]
    sentence: str
    grade: Grade
    evidence: tuple[str, ...]
    """Ids of the records that the sentence rests on."""


class FeatureContext(Record):
    """One place where a feature fired."""

    source: str
    """Corpus or sample id."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class LabelScore(Record):
    """Whether a label tells contexts in which its feature fires from others, on text it was not made from."""

    judge: str
    """`token_overlap`: a context that holds a word of the label counts as firing; or `local_model:<ref>`."""
    balanced_accuracy: Rate | None
    """Mean of the two hit rates; 0.5 is what guessing reaches."""
    n_firing: Count
    n_other: Count
    not_measured: str | None = None
    """Why there is no figure."""


class Feature(Record):
    """Evidence of what one feature responds to; no invented labels."""

    hook: str
    feature: Count
    density: Rate | None
    """Share of tokens on which it fires."""
    density_source: str | None
    top_contexts: tuple[FeatureContext, ...]
    promoted_tokens: tuple[str, ...]
    """Tokens whose logits its decoder row raises most."""
    suppressed_tokens: tuple[str, ...]
    label: str | None = None
    label_source: str | None = None
    """`neuronpedia` or `local_model:<ref>`; None: there is no label."""
    label_score: LabelScore | None = None
    """None with a label: how well it fits was not measured."""


class ScorerValidation(Record):
    """A scorer against labelled examples."""

    scorer: str
    dataset: str
    n: Count
    accuracy: Rate | None
    precision: Rate | None
    recall: Rate | None
    trivial_accuracy: Rate | None
    """Accuracy of always naming the larger class."""
    label_source: str
    not_measured: str | None = None
    """Why the figures are missing, if they are."""


class GateResult(Record):
    rule: str
    estimate: float | None
    ci_low: float | None
    ci_high: float | None
    threshold: float | None
    n: Count
    verdict: Verdict
    n_needed: int | None
    """Sample size that would decide, if inconclusive."""
    metric: str = ""
    failure_mode: str | None = None
    reason: str = ""


# --------------------------------------------------------------------------------- contexts compared

Classifier = Literal["sae", "frozen_random", "bag_of_words", "format_only"]
"""What tells two framings apart: the audited features, those of frozen-random SAEs, or the prompt's text."""


class Reading(Record):
    """One line of readings.jsonl: one figure per sample, taken to compare contexts.

    A framing is named `neutral`, `test/statement`, or `test/statement/control`.
    """

    what: Literal[
        "told_apart", "latent", "activation", "effect", "verbalised", "inhibited", "collateral"
    ]  # fmt: skip
    """`told_apart`: a classifier's score out of fold. `latent`: that of the probe of the discovery half.
    `activation`: one feature at the final position. `effect`: margin before − after switching it off,
    nats. `verbalised`: log P(a test) − log P(real use) when asked, nats. `inhibited`: outcomes with features
    held down. `collateral`: KL divergence of the next token under the same change, nats."""
    by: Classifier | None = None
    """Whose features or scores; None: the model's own answer."""
    seed: int | None = None
    first: str | None = None
    """The framing it is compared with; the classifier's negative class."""
    second: str | None = None
    features: tuple[str, ...] = ()
    """`HOOK/fFEATURE`."""
    strength: float | None = None
    """Features' values were multiplied by 1 − this: 1 removes them."""
    threshold: float | None = None
    """`latent`: scores above it count as aware; fixed on the discovery half."""
    rule: Literal["removed", "equal_collateral"] | None = None
    """How the strength was chosen: 1, or so that the collateral is the audited features'."""
    half: Literal["discovery", "held_out"] | None = None
    values: dict[str, float] = {}
    """Sample → figure."""
    outcomes: dict[str, Outcome] = {}
    """`inhibited`: sample → outcome."""
    previous: Sha256


class FramingRate(Record):
    """How often the same items failed in one framing."""

    failure_mode: str
    framing: str
    context: Context
    rung: Rung | None
    format_control: bool
    n: Count
    n_failed: Count
    n_unscored: Count
    rate: Rate | None
    ci_low: Rate | None
    """Wilson, 95 %."""
    ci_high: Rate | None
    n_mentions: Count | None = None
    """Generated responses that themselves speak of a test; None: nothing was generated."""


class PairedGap(Record):
    """One failure rate in two framings of the same items: second − first."""

    n: Count
    """Items scored in both."""
    n_failed_first: Count
    n_failed_second: Count
    n_only_first: Count
    n_only_second: Count
    difference: float | None
    ci_low: float | None
    """Bonett–Price, over groups where they hold several items."""
    ci_high: float | None
    exact_low: float | None
    """Never below 95 %: both discordant shares by Clopper–Pearson, Bonferroni."""
    exact_high: float | None
    p_value: Rate
    """Exact McNemar test, two-sided."""


class ContextGap(Record):
    """What a cue does to a failure rate, beside what its format alone does."""

    failure_mode: str
    first: str
    second: str
    rung: Rung
    gap: PairedGap
    control: PairedGap | None
    """The same for the format controls; None: they were not run."""
    p_adjusted: Rate
    """Holm over every gap of this run."""
    beyond: float | None
    """Gap − its control's gap, mean over groups."""
    beyond_low: float | None
    """Student, over groups."""
    beyond_high: float | None
    finding: Literal["beyond_format", "format_too", "not_shown", "no_control"]
    """`beyond_format`: the gap is shown, its control shows none, and the excess is above zero. `format_too`:
    the gap is shown, and form alone is not ruled out. `not_shown`: p ≥ 5 % after Holm, or
    the interval holds zero."""


class CircuitOverlap(Record):
    """Whether failures of one mode come through the same features in two contexts, by feature and role."""

    failure_mode: str
    first: Context
    second: Context
    n_first: Count
    """Attributed failures."""
    n_second: Count
    size: Count
    """Nodes of each circuit: the largest mean exact effects."""
    n_shared: Count
    jaccard: Rate | None
    prevalence_mean: Rate | None
    """Floor: Jaccard index when effects are dealt out among the nodes measured in each context."""
    prevalence_high: Rate | None
    """Its 95 % quantile."""
    permuted_mean: Rate | None
    """Ceiling: Jaccard index when failures are dealt out between the contexts, group by group."""
    permuted_low: Rate | None
    """Its 5 % quantile."""
    p_different: Rate | None
    """Share of permutations that overlap at most as much: small means that the circuits differ."""
    rank_correlation: float | None
    """Spearman, over nodes measured in both contexts."""
    rank_floor: float | None
    """95 % quantile when effects are dealt out."""
    not_measured: str | None = None


class FeatureShift(Record):
    """One feature in two framings of the held-out items; it was chosen on the discovery half."""

    feature: str
    first: str
    second: str
    n: Count
    """Pairs."""
    mean_first: float | None
    mean_second: float | None
    ci_low: float | None
    """Of the mean change, Student."""
    ci_high: float | None
    p_value: Rate
    """Wilcoxon's signed-rank test."""
    q_value: Rate
    """Benjamini–Hochberg over all features and comparisons tested for activation."""
    format_shift: float | None
    """Mean change from `neutral` to the format control of `second`; None: not run."""
    n_effect: Count = 0
    effect_first_nats: float | None = None
    """Mean exact effect of switching it off; None: not measured."""
    effect_second_nats: float | None = None
    effect_p_value: Rate | None = None
    effect_q_value: Rate | None = None


class ToldApart(Record):
    """How well one classifier tells two framings apart, out of fold; folds share neither item nor wording."""

    first: str
    second: str
    by: Classifier
    seed: int | None
    n: Count
    n_groups: Count
    auroc: Rate | None
    ci_low: Rate | None
    """Over groups."""
    ci_high: Rate | None


class AwarenessCell(Record):
    """Held-out items of one framing by what the model says when asked and what the probe reads."""

    framing: str
    n: Count
    n_both: Count
    n_verbalised_only: Count
    n_latent_only: Count
    n_neither: Count


class InhibitionArm(Record):
    """Held-out failures with one set of features held down."""

    kind: ControlKind
    """`none`: the audited SAEs; `frozen_random`: the same selection on random ones."""
    rule: Literal["removed", "equal_collateral"]
    """`removed`: strength 1. `equal_collateral`: the strength that reaches the audited arm's."""
    seed: int | None
    features: tuple[str, ...]
    strength: float | None
    collateral_kl: float | None
    """On passing samples of the discovery half without the cue, where strengths were matched, nats."""
    fair: bool = False
    """It has features and, for `equal_collateral`, at least 80 % of the audited arm's collateral there."""
    collateral_kl_held_out: float | None
    n: Count
    """Items scored in both framings, before and after."""
    n_failed_first: Count
    n_failed_second: Count
    n_unscored: Count
    gap: float | None
    closed: float | None
    """How much nearer to zero the gap is."""
    lead_low: float | None
    """Of the audited arm's closing over this one's, Student over groups; None: this is the audited arm."""
    lead_high: float | None


class Inhibition(Record):
    """A context gap on the held-out half before and after the awareness features are held down."""

    failure_mode: str
    first: str
    second: str
    n: Count
    n_failed_first: Count
    n_failed_second: Count
    gap: float | None
    p_value: Rate | None
    """Exact McNemar, of the gap before."""
    arms: tuple[InhibitionArm, ...]
    finding: Literal["closes", "not_beyond_floors", "no_gap", "not_measured"]
    """`closes`: the gap was there (p < 5 %), shrinks, and leads every floor in that, intervals above zero.
    `not_measured`: under five floors of a rule, one without features, or one that no strength matches."""


class Contexts(Record):
    """Contexts compared; figures are of what was run, and lists are empty where nothing was measured."""

    rates: tuple[FramingRate, ...]
    gaps: tuple[ContextGap, ...]
    overlaps: tuple[CircuitOverlap, ...]
    shifts: tuple[FeatureShift, ...] = ()
    told_apart: tuple[ToldApart, ...] = ()
    awareness: tuple[AwarenessCell, ...] = ()
    inhibition: tuple[Inhibition, ...] = ()
    notes: tuple[str, ...] = ()
    """What was not measured, and why."""


class Results(Record):
    """results.json, version 1: everything a report prints."""

    schema_version: Literal[1] = 1
    run: RunRecord
    suite: SuiteRecord
    model: ModelRecord
    saes: tuple[SaeRecord, ...]
    failure_modes: tuple[FailureModeResult, ...]
    samples: tuple[SampleResult, ...]
    circuits: tuple[Circuit, ...]
    claims: tuple[Claim, ...]
    gates: tuple[GateResult, ...]
    features: tuple[Feature, ...] = ()
    scorer_validation: tuple[ScorerValidation, ...] = ()
    environment: Environment | None = None
    notes: tuple[str, ...] = ()
    """Limits that the summary must print (for example: no circuit beat its floors)."""
    located: tuple[Located, ...] = ()
    """Per probe: failures that flip when the whole stream moves, by hook and role."""
    hooks: tuple[HookChoice, ...] = ()
    """`hook: auto`: every SAE of the families, in order of depth; empty if the suite names its hooks."""
    firing: tuple[Firing, ...] = ()
    """Per probe: features that fire more often on failures."""
    contexts: Contexts | None = None
    """Contexts compared; None: the suite has one context only."""


# -------------------------------------------------------------------------------------------- the gate

Metric = Literal[
    "failure_rate",
    "rate_difference",
    "feature_share",
    "circuit_necessity",
    "error_share",
    "grade",
    "sae_card",
    "rate_given_knowledge",
    "feature_in_top_k",
    "circuit_overlap",
    "flip_rate",
    "rate_given_stated",
]


class Rule(Record):
    """One threshold of a gate policy."""

    id: Identifier
    """Unique in the policy."""
    metric: Metric
    """What is measured."""
    failure_mode: str | None = None
    """The failure mode it applies to."""
    hook: str | None = None
    """`feature_share`, `error_share`, `sae_card`: the hook."""
    feature: Count | None = None
    """`feature_share`, `feature_in_top_k`: the feature's index."""
    circuit: str | None = None
    """Id of a mode circuit, instead of hook and feature."""
    bound: Literal["ci_high", "ci_low", "estimate"] = "ci_high"
    """Which bound must clear the threshold."""
    max: float | None = None
    """The bound must not exceed this."""
    min: float | None = None
    """The bound must not fall below this."""
    min_n: Count = 0
    """With fewer samples the verdict is inconclusive."""
    context: Literal["neutral", "test", "deployment", "worst"] = "worst"
    """The context judged; `worst` judges every context and takes the worst."""
    field: str | None = None
    """`sae_card`: the card's figure, such as `explained_variance`."""
    min_grade: Grade | None = None
    """`grade`: the least grade that the best circuit must have."""
    max_grade: Grade | None = None
    """`grade`: the highest grade that the best circuit may have."""
    k: Annotated[int, Field(ge=1)] | None = None
    """`feature_in_top_k`: how many of a failure's strongest features are looked at."""
    aggregate: Literal["mean", "every", "share_above"] = "mean"
    """Single failures' figures: their mean; each for itself, the worst deciding; or how many pass `level`."""
    level: Rate | None = None
    """For `aggregate: share_above`: a failure counts if its figure exceeds this."""
    interval: Literal["wider", "wilson", "clustered"] = "wider"
    """Over items, over groups, or whichever reaches further where items share groups."""

    @model_validator(mode="after")
    def _has_threshold(self) -> Rule:
        if self.metric != "grade" and self.max is None and self.min is None:
            raise ValueError("give 'max' or 'min'")
        return self


class Policy(Record):
    """A gate policy, version 1."""

    schema_version: Literal[1]
    """Version of this schema."""
    id: Identifier
    """Name of the policy."""
    description: str = ""
    """Why these thresholds."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    """All must pass."""


class GateReport(Record):
    """gate.json."""

    schema_version: Literal[1] = 1
    policy: str | None
    verdict: Verdict | None
    """None: no policy was given."""
    gates: tuple[GateResult, ...]
    run: str
    baseline: str | None = None
    """Id of the run compared with."""
    policy_sha256: Sha256 | None = None
    """Digest of the policy as canonical JSON."""
    policy_was_planned: bool | None = None
    """Whether plan.json fixed this very policy before the first sample; None: not known."""


Plan.model_rebuild()


def json_text(record: Record) -> str:
    """`record` as indented JSON with a final newline; key order is the order of declaration."""
    return record.model_dump_json(indent=1) + "\n"


def schema_of(record: type[Record]) -> dict[str, Any]:
    """JSON Schema (2020-12) of a record."""
    return record.model_json_schema()
