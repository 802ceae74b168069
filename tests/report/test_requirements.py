"""Requirement maps: status by declared conditions, and nothing claimed of a text that nobody read."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from synthetic import Run

from evalkit.errors import ConfigError, RunError
from evalkit.report import build_view, render_html, write_report
from evalkit.report.item_index import N_ITEMS, item_index
from evalkit.report.nouns import Inputs
from evalkit.report.requirements import CONDITIONS, Requirement, Status, assess, read_map, shipped
from evalkit.sign_off import ProviderPart, SignOff, StoredSignOff

FRAMEWORKS = {
    "nist-ai-800-2": 9, "nist-ai-rmf-measure": 8, "eu-ai-act": 7, "gpai-code-of-practice": 7, "stream": 6,
    "iso-iec-42001": 2, "omb-m-26-04": 3,
}  # fmt: skip


def inputs(run: Run, sign_off: StoredSignOff | None = None) -> Inputs:
    return Inputs(run.results, run.plan, None, run.gate, "ab" * 32, sign_off, shipped())


def stating(**fields: str) -> StoredSignOff:
    return StoredSignOff(SignOff(schema_version=1, provider=ProviderPart(**fields)), "cd" * 32)  # type: ignore[arg-type]


def test_every_framework_is_there_and_only_what_was_read_in_the_primary_text_is_called_read() -> None:
    maps = {m.id: m for m in shipped()}
    assert {name: len(m.requirements) for name, m in maps.items()} == FRAMEWORKS
    assert {m.id for m in maps.values() if any(r.verified for r in m.requirements)} == {"nist-ai-rmf-measure"}
    for r in maps["nist-ai-rmf-measure"].requirements:
        assert r.verified and r.read_in is not None
        assert re.search(r"NIST AI 100-1.*SHA-256 [0-9a-f]{64}.*read on \d{4}-\d{2}-\d{2}", r.read_in)
        assert not r.complete, "no run covers one of these on its own"
    ids = [r.id for r in maps["nist-ai-800-2"].requirements]
    assert ids == ["1.1", "1.2", "1.3", "2.1", "2.2", "2.3", "3.1", "3.2", "3.3"]


def requirement(**given: Any) -> Requirement:
    return Requirement.model_validate({"id": "x", "topic": "t", "evidence": ("rates",), **given})


def test_status_follows_from_declared_conditions(run: Run) -> None:
    here, said = inputs(run), inputs(run, stating(owner="A"))
    read = {"verified": True, "read_in": "the text", "complete": True}
    cases: list[tuple[Requirement, Inputs, Status]] = [
        (requirement(**read), here, "EVIDENCED"),
        (requirement(complete=True), here, "PARTIAL"),
        (requirement(**{**read, "complete": False}), here, "PARTIAL"),
        (requirement(evidence=("rates", "over_refusal"), **read), here, "PARTIAL"),
        (requirement(provider=("provider.owner",), **read), here, "PARTIAL"),
        (requirement(provider=("provider.owner",), **read), said, "EVIDENCED"),
        (requirement(evidence=("over_refusal",), **read), here, "NOT EVIDENCED"),
        (requirement(evidence=(), provider=("provider.owner",)), here, "PROVIDER MUST SUPPLY"),
        (requirement(evidence=(), provider=("provider.owner",)), said, "PARTIAL"),
        (requirement(applies=("over_refusal",), **read), here, "N/A"),
    ]
    assert [assess(r, i).status for r, i, _ in cases] == [status for *_, status in cases]
    assert {status for *_, status in cases} == set(get_args(Status))


def test_no_shipped_requirement_is_evidenced_however_good_the_run(run: Run) -> None:
    every = {name: "stated" for name in ProviderPart.model_fields if name != "expiry"}
    full = inputs(run, stating(**every))
    assert {assess(r, full).status for m in shipped() for r in m.requirements} <= {
        "PARTIAL", "NOT EVIDENCED", "PROVIDER MUST SUPPLY",
    }  # fmt: skip


def test_every_condition_is_false_of_an_empty_run_or_always_true(run: Run) -> None:
    bare = run.results.model_copy(
        update={
            "failure_modes": (), "samples": (), "circuits": (), "saes": (), "gates": (), "environment": None,
            "scorer_validation": (),
            "model": run.results.model.model_copy(update={"files": (), "modality": "audio"}),
            "run": run.results.run.model_copy(update={"heads": {}}),
        }
    )  # fmt: skip
    empty = Inputs(bare, None, None, None, "ab" * 32)
    assert {name for name, condition in CONDITIONS.items() if condition.holds(empty)} == {"limits"}


def test_the_report_prints_status_evidence_page_and_gap(run: Run) -> None:
    html = render_html(build_view(run.results, run.plan, gate=run.gate))
    part = html[html.index('id="a1"') : html.index('id="a2"')]
    n_read = FRAMEWORKS["nist-ai-rmf-measure"]
    assert part.count('class="read">text not read') == sum(FRAMEWORKS.values()) - n_read
    assert part.count('class="read">text read') == n_read
    anchors = set(re.findall(r'class="pageref" href="#([^"]+)"', part))
    assert anchors and all(f'id="{anchor}"' in html for anchor in anchors)
    assert "not stated: provider.intended_use" in unescape(part)


def test_nothing_rendered_says_the_word_that_nobody_may_say(run: Run) -> None:
    html = render_html(build_view(run.results, run.plan, gate=run.gate)).lower()
    maps = "".join(m.model_dump_json() for m in shipped()).lower()
    for word in ("compliant", "complies", "conformant", "certified to", "fulfils"):
        assert word not in html and word not in maps


OWN = {
    "schema_version": 1, "id": "own", "title": "Our rules", "text_version": "3", "date": "2026",
    "requirements": [{"id": "R1", "topic": "rates", "verified": True, "read_in": "our handbook",
                      "evidence": ["rates"], "complete": True}],
}  # fmt: skip


def test_an_own_map_is_kept_with_the_run_and_printed(drawn: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(drawn, run_dir)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(OWN))
    write_report(run_dir, maps=[path])
    first = (run_dir / "report.html").read_bytes()
    assert b"Our rules: 3, 2026" in first and b"<strong>EVIDENCED</strong>" in first
    path.unlink()
    write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == first
    (run_dir / "maps" / "other.yaml").mkdir()
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**OWN, "id": "other"}))
    with pytest.raises(RunError, match=r"other\.yaml: cannot write"):
        write_report(run_dir, maps=[other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evidence": ["rate"]}, "requirement 'R1': no condition 'rate'; did you mean 'rates'?"),
        ({"provider": ["provider.onwer"]}, "no statement 'provider.onwer'; did you mean 'provider.owner'?"),
        ({"read_in": None}, "'verified: true' needs 'read_in:'"),
        ({"evidence": []}, "give 'evidence' or 'provider'"),
        ({"status": "EVIDENCED"}, "no key 'status'"),
    ],
)
def test_a_wrong_map_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**OWN, "requirements": [{**OWN["requirements"][0], **change}]}))  # type: ignore[index]
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        read_map(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_item_index_has_every_item_or_says_how_many_are_elsewhere(run: Run) -> None:
    table = item_index(inputs(run))
    ids = {cell for row in table.rows for cell in (row[0], row[3]) if cell}
    assert ids == {s.id for s in run.results.samples}
    [one] = [s for s in run.results.samples if s.id == table.rows[0][0]]
    import hashlib

    assert table.rows[0][2] == hashlib.sha256(one.prompt.encode()).hexdigest()[:12]
    many = run.results.model_copy(
        update={"samples": tuple(one.model_copy(update={"id": f"i{n}"}) for n in range(N_ITEMS + 7))}
    )
    cut = item_index(inputs(run)._replace(results=many))
    assert len(cut.rows) == N_ITEMS // 2 and "7 further items stand in results.json" in cut.note
    assert item_index(inputs(run)._replace(results=many.model_copy(update={"samples": ()}))).rows == ()
