"""How to verify, the dependency lock, and where samples went: said as the run and the program have it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

from synthetic import Run

from evalkit.evidence.checks import MEANING
from evalkit.report import build_view
from evalkit.report.nouns import Definition
from evalkit.results import ERROR

CLI = "from evalkit.cli import main; main()"


def steps(run: Run) -> tuple[Definition, ...]:
    return build_view(run.results, run.plan, gate=run.gate).verify_steps


def test_every_level_of_verify_is_named_with_what_it_proves(run: Run) -> None:
    named = [re.match(r"Level (\d): ", d.term) for d in steps(run)]
    assert [int(m[1]) for m in named if m] == [n for n in MEANING if n]
    assert all(re.search(r"\bnot\b", d.meaning.lower()) for d in steps(run) if d.term.startswith("Level"))


def test_every_option_named_in_how_to_verify_exists(run: Run) -> None:
    words = " ".join(d.meaning for d in steps(run))
    assert "evalkit pack RUN" in words and "evalkit verify PACK" in words
    helps = "".join(
        subprocess.run(
            [sys.executable, "-c", CLI, verb, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for verb in ("pack", "verify")
    )
    flags = set(re.findall(r"--[a-z]+", words))
    assert {"--signer", "--key", "--level", "--samples", "--seed"} <= flags
    assert not [flag for flag in flags if flag not in helps]


def test_the_lock_is_named_by_the_digest_of_the_packs_own_file(run: Run) -> None:
    environment = run.results.environment
    assert environment is not None
    bare = {f.name: f for f in build_view(run.results).environment}
    assert bare["Dependency lock"].kind == "missing" and "NOT STATED" in bare["Dependency lock"].value
    locked = environment.model_copy(update={"lock": {"numpy": "2.3.1", "a": "1"}})
    facts = {
        f.name: f for f in build_view(run.results.model_copy(update={"environment": locked})).environment
    }
    file = (
        "# As the run recorded them: every distribution that evalkit needs.\n"
        f"evalkit-audit=={environment.evalkit}\na==1\nnumpy==2.3.1\n"
    )
    assert facts["Dependency lock, SHA-256"].value == hashlib.sha256(file.encode()).hexdigest()


def test_what_broke_has_its_own_column_in_the_flow_of_samples(run: Run) -> None:
    broken = run.results.samples[0].model_copy(
        update={
            "outcome": "unscored",
            "reason": f"{ERROR}memory",
            "validity": "valid",
            "counted": False,
        }
    )
    before = build_view(run.results).results.flow
    after = build_view(
        run.results.model_copy(update={"samples": (broken, *run.results.samples[1:])})
    ).results.flow
    at = [c.head for c in after.columns].index("Errored")
    assert [row[at] for row in before.rows].count("0") == len(before.rows)
    assert sum(int(row[at]) for row in after.rows) == 1
