"""Section 4: the calibration that came with this version, so that a reader can judge the instrument."""

from __future__ import annotations

from evalkit import calibrated
from evalkit.calibrated import Calibration
from evalkit.report import text
from evalkit.report.nouns import Column, Inputs, Instrument, Table

REMEDY = "evalkit calibrate --null 300"
NOT_SHOWN = (
    "The models are small and wired by hand, and their SAEs are exact. On a real model an SAE explains a "
    "part of the stream, and what it misses stands as error beside each attribution: recall there is not "
    "measured by this table.",
    "A wired cause is one feature at one position. Causes that are spread over many weak features, or that "
    "change with the wording, are not among the models.",
    "Null circuits are confirmed in this table as often as the test errs on these models; it is a check of "
    "the procedure, not a guarantee for one circuit of this audit.",
    "Coverage was drawn from populations made for the purpose. An interval speaks of prompts like those that "
    "were drawn, here as there.",
)


def instrument(inputs: Inputs, found: Calibration | None) -> Instrument:
    """The tables of the shipped calibration; without one, that there is none."""
    if found is None:
        lead = f"This version came without a calibration: NOT MEASURED. “{REMEDY}” makes one."
        return Instrument((lead,), False, (), ())
    broken = [e for e in found.expectations if not e.holds]
    n = len(found.expectations)
    words = [
        "Before it is believed, the method was run on models whose causes are known because they were wired "
        "by hand, and on models with nothing to find. The figures are those of the calibration that is "
        f"shipped with evalkit {text.name(found.evalkit)} (calibration {found.calibration}, seed "
        f"{found.seed}, torch {text.name(found.torch)}), not of this run; “{REMEDY}” repeats it.",
        f"{n - len(broken)} of {n} expectations hold.",
        *_blind(found),
    ]
    made_with = inputs.results.environment.evalkit if inputs.results.environment else None
    if made_with != found.evalkit:
        words.append(
            f"This run was made with evalkit {text.stated(made_with)}: the calibration is another version's."
        )
    words += [f"Does not hold: {e.variant}: {e.rule} ({e.found})." for e in broken]
    return Instrument(tuple(words), not broken, _tables(found), NOT_SHOWN)


def _blind(found: Calibration) -> list[str]:
    """What single ablations and the shortlist are known to miss, with counts."""
    words = []
    unlisted = [v for v in found.variants if v.n_unlisted]
    if unlisted:
        missed = sum(v.n_unlisted - v.n_unlisted_recalled for v in unlisted)
        words.append(
            f"Known blind spot: without a passing twin, a saturated cause among many weak ones is not "
            f"shortlisted; {missed} of {sum(v.n_unlisted for v in unlisted)} such nodes were missed."
        )
    doubled = [v for v in found.variants if v.n_blind]
    if doubled:
        named, planted = sum(v.n_pairs_found for v in doubled), sum(v.n_pairs_planted for v in doubled)
        words.append(
            f"Single ablation shows {sum(v.n_blind_recalled for v in doubled)} of "
            f"{sum(v.n_blind for v in doubled)} nodes that have a stand-in; ablating groups named {named} of "
            f"{planted} such pairs. Stand-ins at different hooks, or among more than eight features, are not "
            "searched."
        )
    return words


def _tables(found: Calibration) -> tuple[Table, ...]:
    variants = Table(
        "Models with planted causes, and models without",
        tuple(Column(h, "word" if h == "model" else "num") for h in calibrated.VARIANT_HEADS),
        tuple(calibrated.variant_rows(found)),
        calibrated.VARIANT_NOTE,
        may_split=True,
    )
    nulls = Table(
        "Mode circuits where there is nothing to find",
        (Column(calibrated.NULL_HEADS[0]), *(Column(h, "num") for h in calibrated.NULL_HEADS[1:])),
        tuple(calibrated.null_rows(found)),
        "flipped any: circuits that flipped at least one held-out failure, so that a lax test could have "
        "confirmed them. The interval is Clopper–Pearson's.",
    )
    coverage = Table(
        "How often a printed 95 % interval held the known truth",
        (Column(calibrated.COVERAGE_HEADS[0]), *(Column(h, "num") for h in calibrated.COVERAGE_HEADS[1:])),
        tuple(calibrated.coverage_rows(found)),
        "rows: combinations of sample size and true rate; its interval: the Monte-Carlo error of the "
        "coverage; least row: the worst combination.",
    )
    sound = Table(
        "A planted event in sound, located in frames of 20 ms",
        (Column(calibrated.FRAME_HEADS[0]), *(Column(h, "num") for h in calibrated.FRAME_HEADS[1:])),
        tuple(calibrated.frame_rows(found)),
        "located frames: those at which a blamed feature fires within its segment of 200 ms; padding: frames "
        "beyond the clip's end, which no SAE may read.",
    )
    blame = Table(
        "Blame in scripted episodes with one planted decisive turn",
        (Column(calibrated.BLAME_HEADS[0]), *(Column(h, "num") for h in calibrated.BLAME_HEADS[1:])),
        tuple(calibrated.blame_rows(found)),
        "turn, agent: named as planted. two plants: either of two turns breaks the rule by itself, so that "
        "none may be blamed. Scripts are exact; agents that are models add the noise of their rollouts.",
    )
    gates = Table(
        "Models with a gate on their framing",
        (Column(calibrated.GATE_HEADS[0]), *(Column(h, "num") for h in calibrated.GATE_HEADS[1:])),
        tuple(calibrated.gate_rows(found)),
        "test-gate fails where the prompt means a test, form-gate wherever a cue's form stands. gap says: "
        "beyond format, or shown by the control too; gate found, form blamed: among the awareness features; "
        "AUROC: cue against control in wordings that were not fitted, and by a bag of words; gap: held out, "
        "before and with the features held down; floor: the most that a frozen-random SAE's features close.",
    )
    return tuple(t for t in (variants, nulls, coverage, sound, blame, gates) if t.rows)
