"""What happens to an evidence pack, and which level of `evalkit verify` finds it.

    python benchmarks/tamper_table.py PACK [--flips 1000] [--random 4] [--seed 0]

1. Bits of every file are flipped, first, middle and last byte, and at random places; files are removed,
   added, swapped, truncated. Nothing else is touched.
2. The forger redoes every digest, and where needed draws the report again: then what?
3. The forger owns a key and signs anew.

Each change is made on a copy and undone. A change that no level up to 3 finds is printed as MISSED; the last
rows say which are out of reach without weights or without the expected signer's key. Exit 1 on a miss.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from securesystemslib.signer import CryptoSigner

from evalkit.digests import digest_bytes
from evalkit.errors import EvidenceError
from evalkit.evidence.checks import Check, level_reached
from evalkit.evidence.envelope import sign, statement
from evalkit.evidence.keys import public_pem
from evalkit.evidence.packing import SIGNER, derived_files, gates_of, read_pack
from evalkit.evidence.sums import ATTESTATION, SUMS, UNLISTED, digest_tree, sums_text
from evalkit.records import AttributionRecord, InterventionRecord, SampleRecord, json_text
from evalkit.results import tally
from evalkit.verify import verify

MISSED = 0


class Row(NamedTuple):
    """One tampering and the level that found it; `MISSED` if none did."""

    what: str
    level: int
    said: str


def caught_at(pack: Path, *, signer: Path | None = None, deepest: int = 3) -> tuple[int, str]:
    """The first level that refuses the pack, and its words."""
    checks: list[Check] = []
    for level in range(1, deepest + 1):
        try:
            checks = list(verify(pack, level=level, signer=signer))
        except EvidenceError as error:
            return level, str(error).replace(f"{pack}/", "")
    return MISSED, f"clean at level {level_reached(checks)}"


# ------------------------------------------------------------------------------- without new digests


def flips(data: bytes, n_random: int, rng: random.Random) -> Iterator[tuple[int, int]]:
    """(byte, bit) places: first, middle, last, and random ones."""
    if data:
        yield from ((at, bit) for at in sorted({0, len(data) // 2, len(data) - 1}) for bit in (0, 5, 7))
        yield from ((rng.randrange(len(data)), rng.randrange(8)) for _ in range(n_random))


def flip_every_file(pack: Path, n_random: int, rng: random.Random) -> Iterator[Row]:
    """One row per file: the highest level that any of its flips needed, or MISSED."""
    for path in sorted(p for p in pack.rglob("*") if p.is_file()):
        data = path.read_bytes()
        levels, said = [], ""
        for at, bit in flips(data, n_random, rng):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            level, said = caught_at(pack)
            levels.append(level)
        path.write_bytes(data)
        found = MISSED if MISSED in levels else max(levels, default=1)
        yield Row(f"flip a bit in {path.relative_to(pack)} ({len(levels)} times)", found, said)


def fuzz(pack: Path, n_flips: int, rng: random.Random) -> Row:
    """Random flips over all files, each file as likely as its bytes."""
    paths = sorted(p for p in pack.rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in paths]
    levels = []
    for path in rng.choices(paths, weights=sizes, k=n_flips):
        data = path.read_bytes()
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        levels.append(caught_at(pack)[0])
        path.write_bytes(data)
    found = MISSED if MISSED in levels else max(levels)
    return Row(
        f"{n_flips} random flips, places by size", found, f"{len(levels) - levels.count(MISSED)} found"
    )


def rearranged(pack: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Files removed, added, swapped, truncated."""
    for path in sorted(p for p in pack.rglob("*") if p.is_file()):
        name = path.relative_to(pack)
        if str(name) not in (SUMS, ATTESTATION):
            yield f"remove {name}", path.unlink
        if path.stat().st_size:
            yield f"empty {name}", lambda path=path: path.write_bytes(b"")
        yield f"append a newline to {name}", lambda path=path: path.write_bytes(path.read_bytes() + b"\n")
    yield "remove SHA256SUMS", (pack / SUMS).unlink
    if (pack / ATTESTATION).exists():
        yield "remove attestation.dsse.json", (pack / ATTESTATION).unlink
    yield "add a file", lambda: (pack / "more.txt").write_text("x")
    yield "add a hidden file", lambda: (pack / ".more").write_text("x")
    yield "add a file to suite/", lambda: (pack / "suite" / "more.yaml").write_text("x")
    yield "add an empty folder", (pack / "more").mkdir
    yield "replace a file by a link", lambda: _link(pack / "command.txt")
    yield "swap two figures", lambda: _swap(*sorted((pack / "figures").iterdir())[:2])
    yield (
        "swap samples.jsonl and attributions.jsonl",
        lambda: _swap(pack / "samples.jsonl", pack / "attributions" / "attributions.jsonl"),
    )
    yield "rename a figure", lambda: _rename(sorted((pack / "figures").iterdir())[0])


def _link(path: Path) -> None:
    target = path.with_name(".target")
    shutil.move(path, target)
    path.symlink_to(target.name)


def _swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def _rename(path: Path) -> None:
    path.rename(path.with_name("99-other.svg"))


# ---------------------------------------------------------------------------------- with new digests


def reseal(pack: Path, signer: CryptoSigner | None, *, redraw: bool) -> None:
    """What a forger does afterwards: draw all again, redo the digests, sign with another key or none."""
    run = read_pack(pack)
    if redraw:
        for name, data in derived_files(pack, run).items():
            (pack / name).write_bytes(data)
    for name in (ATTESTATION, SIGNER):
        (pack / name).unlink(missing_ok=True)
    if signer is not None:
        (pack / SIGNER).write_bytes(public_pem(signer.public_key))
    digests = {n: d for n, d in digest_tree(pack).items() if n not in UNLISTED}
    (pack / SUMS).write_text(sums_text(digests), "utf-8")
    if signer is not None:
        payload = statement(digests | {SUMS: digest_bytes((pack / SUMS).read_bytes())}, gates_of(run))
        (pack / ATTESTATION).write_bytes(sign(payload, signer))


def forge_rate(pack: Path) -> None:
    """One failure fewer in results.json."""
    path = pack / "results.json"
    results: dict[str, Any] = json.loads(path.read_bytes())
    mode = next(m for m in results["failure_modes"] if m["n_failed"])
    mode["n_failed"] -= 1
    mode["rate"] = mode["n_failed"] / mode["n"]
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


def forge_records(pack: Path) -> None:
    """A failing sample passes, and every digest and figure that follows is made to agree."""
    run = read_pack(pack)
    assert run.results is not None and run.manifest is not None
    name = next(r.sample.id for r in run.samples if r.score.outcome == "fail" and not r.sample.control)
    samples = [
        r.model_copy(update={"score": r.score.model_copy(update={"outcome": "pass", "margin_nats": -1.0})})
        if r.sample.id == name
        else r
        for r in run.samples
    ]
    attributions = [a for a in run.attributions if a.sample != name]
    interventions = [i for i in run.interventions if i.sample != name]
    ledgers = pack / "attributions"
    heads = {
        **run.heads,
        "samples.jsonl": _rechain(pack / "samples.jsonl", samples, run.plan_sha256),
        "attributions.jsonl": _rechain(ledgers / "attributions.jsonl", attributions, run.plan_sha256),
        "interventions.jsonl": _rechain(ledgers / "interventions.jsonl", interventions, run.plan_sha256),
    }
    from evalkit import gate
    from evalkit.results import described_features

    counted = tally(
        run.plan, samples, attributions, interventions, run.manifest.saes, run.results.firing, run.readings
    )
    kept = set(described_features(attributions))
    results = run.results.model_copy(
        update={
            **counted._asdict(),
            "run": run.results.run.model_copy(update={"heads": heads}),
            "features": tuple(f for f in run.results.features if (f.hook, f.feature) in kept),
            "gates": (),
        }
    )
    judged = gate.judge(results, run.plan.policy)
    results = results.model_copy(update={"gates": judged.gates})
    (pack / "results.json").write_text(json_text(results), "utf-8")
    (pack / "gate.json").write_text(json_text(judged), "utf-8")


Link = SampleRecord | AttributionRecord | InterventionRecord


def _rechain(path: Path, records: list[Any], head: str) -> str:
    lines = []
    for record in records:
        lines.append(record.model_copy(update={"previous": head}).model_dump_json().encode())
        head = digest_bytes(lines[-1])
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return head


def edit_pdf(pack: Path) -> None:
    """Another word in the PDF's text, its structure, creator and attachment as they were."""
    import pikepdf

    path = pack / "report.pdf"
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        page = pdf.pages[0]
        page.contents_add(b"BT /F1 1 Tf (PASS) Tj ET")
        pdf.save(path, deterministic_id=True)


def edit_text(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    """Other bytes in one file; it must hold the old ones."""

    def edit(pack: Path) -> None:
        data = (pack / name).read_bytes()
        assert old in data, (name, old)
        (pack / name).write_bytes(data.replace(old, new, 1))

    return edit


FORGERIES: tuple[tuple[str, Callable[[Path], None], bool], ...] = (
    ("a rate in results.json", forge_rate, False),
    ("a rate in results.json, report and exports drawn again", forge_rate, True),
    ("the text of report.pdf", edit_pdf, False),
    ("a word in report.html", edit_text("report.html", b"<h1", b"<H1"), False),
    ("a figure's SVG", lambda pack: _touch(sorted((pack / "figures").iterdir())[0]), False),
    ("a verdict in junit.xml", edit_text("junit.xml", b"<testcase", b"<testcase "), False),
    ("oscal", edit_text("oscal/assessment-results.json", b'"title"', b'"title" '), False),
    ("bom.cdx.json", edit_text("bom.cdx.json", b'"version": 1', b'"version": 2'), False),
    ("requirements.lock", edit_text("requirements.lock", b"==", b"==9."), False),
    ("command.txt", edit_text("command.txt", b"evalkit", b"evalkid"), False),
    ("pack.json", edit_text("pack.json", b'"run_id": "', b'"run_id": "x'), False),
    ("model.manifest.json", edit_text("model.manifest.json", b'"licence": "', b'"licence": "x'), False),
)


def _touch(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def forgeries(pack: Path, scratch: Path) -> Iterator[Row]:
    """What each forgery comes to when its digests are redone, without and with a key of the forger's."""
    expected = scratch / "expected.pub"
    if (pack / SIGNER).exists():
        shutil.copy(pack / SIGNER, expected)
    thief = CryptoSigner.generate_ed25519()
    for what, forge, redraw in FORGERIES:
        copy = _copy(pack, scratch)
        forge(copy)
        reseal(copy, None, redraw=redraw)
        yield Row(f"forge {what}; digests redone", *caught_at(copy))
    copy = _copy(pack, scratch)
    forge_rate(copy)
    reseal(copy, thief, redraw=True)
    yield Row("forge a rate, redraw, sign with another key; no --signer", *caught_at(copy))
    if expected.exists():
        yield Row("forge a rate, redraw, sign with another key; --signer", *caught_at(copy, signer=expected))
        copy = _copy(pack, scratch)
        forge_records(copy)
        reseal(copy, thief, redraw=True)
        row = Row(
            "forge records and all that follows, another key; --signer", *caught_at(copy, signer=expected)
        )
        yield row
        copy = _copy(pack, scratch)
        reseal(copy, None, redraw=False)
        yield Row("remove the signature, redo the digests; --signer", *caught_at(copy, signer=expected))


def out_of_reach(pack: Path, scratch: Path) -> Iterator[Row]:
    """What levels 1 to 3 cannot find without the expected signer's key: stated, not hidden."""
    copy = _copy(pack, scratch)
    forge_records(copy)
    reseal(copy, CryptoSigner.generate_ed25519(), redraw=True)
    yield Row(
        "forge records and all that follows, another key; no --signer (level 4 finds it)", *caught_at(copy)
    )
    copy = _copy(pack, scratch)
    reseal(copy, None, redraw=False)
    yield Row("remove the signature, redo the digests; no --signer (printed: UNSIGNED)", *caught_at(copy))


def _copy(pack: Path, scratch: Path) -> Path:
    copy = scratch / "pack"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(pack, copy, symlinks=True)
    return copy


def rearrangements(pack: Path, scratch: Path) -> Iterator[Row]:
    """One row per file removed, added, swapped or truncated."""
    copy = _copy(pack, scratch)
    n_cases = sum(1 for _ in rearranged(copy))
    for number in range(n_cases):
        copy = _copy(pack, scratch)
        what, change = list(rearranged(copy))[number]
        change()
        yield Row(what, *caught_at(copy))


def table(pack: Path, scratch: Path, *, n_random: int, n_flips: int, seed: int) -> Iterator[Row]:
    """Every row that must be found."""
    rng = random.Random(seed)
    yield from flip_every_file(_copy(pack, scratch), n_random, rng)
    if n_flips:
        yield fuzz(_copy(pack, scratch), n_flips, rng)
    yield from rearrangements(pack, scratch)
    yield from forgeries(pack, scratch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--random", type=int, default=4, help="random flips per file")
    parser.add_argument("--flips", type=int, default=1000, help="random flips over the whole pack")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    n_missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        if (found := caught_at(asked.pack)) != (MISSED, "clean at level 3"):
            print(
                f"{found[1]}: give a clean pack that this very evalkit made, so that level 3 can be reached"
            )
            return 1
        rows = table(asked.pack, Path(scratch), n_random=asked.random, n_flips=asked.flips, seed=asked.seed)
        for row in rows:
            n_missed += row.level == MISSED
            print(f"| {row.what} | {row.level or 'MISSED'} | {row.said} |", flush=True)
        for row in out_of_reach(asked.pack, Path(scratch)):
            print(f"| {row.what} | {row.level or 'out of reach'} | {row.said} |", flush=True)
    print(f"{n_missed} missed")
    return 1 if n_missed else 0


if __name__ == "__main__":
    sys.exit(main())
