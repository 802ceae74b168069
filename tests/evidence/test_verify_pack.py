"""Nobody changes a pack unnoticed: the tamper table, small; `benchmarks/tamper_table.py` is the whole."""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from tamper_table import (
    MISSED,
    caught_at,
    edit_pdf,
    flip_every_file,
    forge_rate,
    forge_records,
    forgeries,
    fuzz,
    out_of_reach,
    rearrangements,
    reseal,
)
from tiny_audit import command

from evalkit.evidence.checks import Check, why_not_higher
from evalkit.evidence.keys import KeyPair, load_signer, make_keys
from evalkit.evidence.sums import SUMS

ENVELOPE = "attestation.dsse.json"


def test_a_signed_pack_is_clean_and_says_what_its_key_shows(signed: Path, keys: KeyPair) -> None:
    for target in (signed, signed / "report.pdf"):
        done = command("verify", target)
        assert done.code == 0, done.err
        assert "Level reached: 3 of 5" in done.out and "integrity, not origin" in done.out
    done = command("verify", signed, "--signer", keys.public, "--level", "1")
    assert done.code == 0 and f"signed by {keys.key_id}, the key in" in done.out
    assert "Level reached: 1 of 5" in done.out and "level 2  " not in done.out


def test_a_flipped_bit_in_any_file_is_found_at_level_1(copy: Path) -> None:
    rows = list(flip_every_file(copy, 1, random.Random(0)))
    assert len(rows) == sum(p.is_file() for p in copy.rglob("*"))
    assert {r.what: r.level for r in rows if r.level != 1} == {}
    assert fuzz(copy, 60, random.Random(1)).level == 1
    assert caught_at(copy, deepest=1)[0] == MISSED, "every flip was undone"


def test_files_removed_added_or_swapped_are_found_at_level_1(signed: Path, tmp_path: Path) -> None:
    rows = list(rearrangements(signed, tmp_path))
    assert len(rows) > 70 and {r.what: r.level for r in rows if r.level != 1} == {}


def test_a_forgery_with_its_digests_redone_is_found(signed: Path, tmp_path: Path) -> None:
    rows = {r.what: r for r in forgeries(signed, tmp_path)}
    assert [r.what for r in rows.values() if r.level == MISSED] == []
    drawn_again = rows["forge a rate in results.json, report and exports drawn again; digests redone"]
    assert drawn_again.level == 2 and "failure_modes.0" in drawn_again.said
    assert rows["forge a rate, redraw, sign with another key; no --signer"].level == 2
    assert rows["forge the text of report.pdf; digests redone"].level == 3
    for row in (rows[w] for w in rows if "another key; --signer" in w):
        assert row.level == 1 and "wrong signer" in row.said
    assert "not signed" in rows["remove the signature, redo the digests; --signer"].said


def test_what_is_out_of_reach_without_the_signers_key_is_known(signed: Path, tmp_path: Path) -> None:
    assert [r.level for r in out_of_reach(signed, tmp_path)] == [MISSED, MISSED]


def test_a_wrong_signer_is_named(copy: Path, keys: KeyPair, tmp_path: Path) -> None:
    thief = make_keys(tmp_path / "thief")
    forge_records(copy)
    reseal(copy, load_signer(thief.private), redraw=True)
    assert command("verify", copy).code == 0  # whole in itself: that is all a key in the pack shows
    done = command("verify", copy, "--signer", keys.public)
    assert done.code == 1 and "wrong signer" in done.error
    assert thief.key_id in done.error and keys.key_id in done.error


def test_the_level_reached_says_why_it_is_not_higher(signed: Path) -> None:
    for asked, why in (("1", "--level 2"), ("2", "--level 3"), ("3", "--level 4; it needs the weights")):
        done = command("verify", signed, "--level", asked)
        assert f"Level reached: {asked} of 5" in done.out
        assert f"Not higher: level {int(asked) + 1} was not asked for: {why}" in done.out
    left = (Check(1, "OK", "a"), Check(3, "NOT CHECKED", "another one drew them"), Check(2, "OK", "b"))
    assert why_not_higher(left) == "level 3: another one drew them"
    assert why_not_higher([Check(n, "OK", "") for n in range(1, 6)]) == ""


def test_a_level_asked_for_and_not_reached_is_a_failure(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    (mine / "report.pdf").unlink()
    done = command("verify", mine)
    assert done.code == 0 and "Level reached: 2 of 5" in done.out
    assert "level 3  NOT CHECKED: report.pdf: not there" in done.out
    done = command("verify", mine, "--level", "3")
    assert done.code == 1 and "level 3 was asked for, level 2 reached" in done.error


def test_a_report_that_another_evalkit_drew_is_not_compared(run: Path, tmp_path: Path) -> None:
    import pikepdf

    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    with pikepdf.open(mine / "report.pdf", allow_overwriting_input=True) as pdf:
        pdf.docinfo["/Creator"] = "evalkit, code 0123456789abcdef"
        pdf.save(mine / "report.pdf")
    done = command("verify", mine)
    assert done.code == 0 and "Level reached: 2 of 5" in done.out
    assert "another one drew them (evalkit, code 0123456789abcdef" in done.out
    (mine / "report.html").write_text("x", "utf-8")
    (mine / "report.pdf").write_bytes((run / "report.pdf").read_bytes())
    done = command("verify", mine)
    assert done.code == 1 and "report.html: is not what the records give" in done.error


def test_a_pdf_edited_in_a_run_directory_is_found(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    edit_pdf(mine)
    done = command("verify", mine)
    assert done.code == 1 and "report.pdf: is not what the records give" in done.error


# ----------------------------------------------------------------------------------- the envelope

Envelope = dict[str, Any]


def spaced(envelope: Envelope) -> bytes:
    return json.dumps(envelope).encode()


def two_signatures(envelope: Envelope) -> bytes:
    other = dict(envelope["signatures"][0], keyid="0" * 64)
    return rfc8785.dumps({**envelope, "signatures": [*envelope["signatures"], other]})


def no_signature(envelope: Envelope) -> bytes:
    return rfc8785.dumps({**envelope, "signatures": []})


def more_fields(envelope: Envelope) -> bytes:
    return rfc8785.dumps({**envelope, "note": "trust me"})


def other_payload(envelope: Envelope) -> bytes:
    payload = json.loads(base64.b64decode(envelope["payload"]))
    payload["predicate"]["result"] = "PASSED"
    return rfc8785.dumps({**envelope, "payload": base64.b64encode(rfc8785.dumps(payload)).decode()})


def nested(_: Envelope) -> bytes:
    return b"[" * 100_000


def other_key_id(envelope: Envelope) -> bytes:
    return rfc8785.dumps({**envelope, "signatures": [dict(envelope["signatures"][0], keyid="0" * 64)]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spaced, "not canonical JSON"),
        (two_signatures, "not canonical JSON with one signature"),
        (no_signature, "not canonical JSON with one signature"),
        (more_fields, "not canonical JSON"),
        (other_payload, "the signature is not one of the key"),
        (nested, "not a DSSE envelope"),
        (other_key_id, "wrong signer"),
        (lambda _: b"\xff", "not a DSSE envelope"),
    ],
)
def test_an_envelope_is_its_canonical_bytes_and_nothing_else(
    copy: Path, change: Callable[[Envelope], bytes], said: str
) -> None:
    envelope = json.loads((copy / ENVELOPE).read_bytes())
    (copy / ENVELOPE).write_bytes(change(envelope))
    done = command("verify", copy)
    assert done.code == 1 and said in done.error


def test_the_statement_is_a_test_result_over_every_file(signed: Path) -> None:
    envelope = json.loads((signed / ENVELOPE).read_bytes())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    named = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    lines = (signed / SUMS).read_text("utf-8").splitlines()
    listed = dict(reversed(line.split("  ", 1)) for line in lines)
    assert {k: v for k, v in named.items() if k != SUMS} == listed and SUMS in named
    predicate = statement["predicate"]
    assert predicate["result"] == "FAILED" and predicate["failedTests"] == ["share"]
    assert [c["name"] for c in predicate["configuration"]] == [
        "plan.json",
        "suite/policy.yaml",
        "suite/suite.yaml",
    ]


def test_a_signature_of_another_pack_does_not_fit(copy: Path, keys: KeyPair) -> None:
    envelope = (copy / ENVELOPE).read_bytes()
    forge_rate(copy)
    reseal(copy, load_signer(keys.private), redraw=True)  # as if the key were stolen: level 2 still finds it
    assert caught_at(copy, signer=keys.public)[0] == 2
    (copy / ENVELOPE).write_bytes(envelope)
    level, said = caught_at(copy, signer=keys.public)
    assert level == 1 and "signs other files" in said


def test_a_key_in_the_pack_that_is_none_is_found(copy: Path) -> None:
    (copy / "signer.pub").write_bytes(b"no key")
    envelope = (copy / ENVELOPE).read_bytes()
    reseal(copy, None, redraw=False)
    (copy / "signer.pub").write_bytes(b"no key")
    (copy / ENVELOPE).write_bytes(envelope)
    (copy / SUMS).write_text(_with_sum(copy, "signer.pub"), "utf-8")
    level, said = caught_at(copy)
    assert level == 1 and "not an ed25519 public key" in said


def _with_sum(copy: Path, name: str) -> str:
    from evalkit.digests import digest_file

    line = f"{digest_file(copy / name).sha256}  {name}"
    lines = [*(copy / SUMS).read_text("utf-8").splitlines(), line]
    return "".join(f"{entry}\n" for entry in sorted(lines, key=lambda entry: entry[66:]))
