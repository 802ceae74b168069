"""Does a pack, a run or a report stand by its own records? Each level includes those below.

1. Digests: nothing in a pack was changed, added or removed; the signature is the expected signer's; every
   digest chain is whole and the files speak of one run.
2. Figures: every count, interval, circuit, sentence and verdict of results.json, computed again from the
   records; the suite's files give the plan's prompts; report.pdf carries that very results.json.
3. Drawing: report, figures and exports drawn again from the records, byte for byte.

Levels 4 and 5 need weights: `rerun.py`. No torch here. How far a level reaches: docs/evidence.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evalkit import redacted
from evalkit.errors import ConfigError, EvalkitError, EvidenceError
from evalkit.evidence import pades
from evalkit.evidence.checks import MEANING, Check, level_reached
from evalkit.evidence.clips import check_clips
from evalkit.evidence.envelope import check_envelope, statement
from evalkit.evidence.keys import load_public, parse_public
from evalkit.evidence.packing import LEDGERS, PACK, SIGNER, SUITE, gates_of, read_pack
from evalkit.evidence.recount import check_figures, check_records
from evalkit.evidence.redraw import check_derived, check_report
from evalkit.evidence.sums import ATTESTATION, SUMS, check_sums
from evalkit.redacted import item_of, read_redactions, reason_of
from evalkit.store import StoredRun, read_run
from evalkit.suites import LoadedSuite, load_suite, render_samples

REPORTS = ("report.pdf", pades.SIGNED)


class Verified(NamedTuple):
    """What was checked, line by line, and the level reached."""

    level: int
    lines: tuple[str, ...]

    @property
    def meaning(self) -> str:
        """The level in words."""
        return MEANING[self.level]


def verify_run(target: Path, *, level: int = 2, signer: Path | None = None) -> Verified:
    """All of `verify` at once; see there."""
    checks = tuple(verify(target, level=level, signer=signer))
    return Verified(level_reached(checks), tuple(f"{c.word}: {c.sentence}" for c in checks))


def find_folder(target: Path) -> Path:
    """The folder that `target` names: itself, or the one of a report.pdf.

    Raises:
        ConfigError: it is neither a folder nor a report in one.
    """
    folder = target.parent if target.is_file() else target
    if not folder.is_dir():
        raise ConfigError(f"{target}: not found; name a pack, a run directory, or the report.pdf inside one")
    if target.is_file() and target.name not in REPORTS:
        raise ConfigError(f"{target}: name a pack, a run directory, or the report.pdf inside one")
    return folder


def is_pack(folder: Path) -> bool:
    """Whether `folder` is, or was, an evidence pack rather than a run directory."""
    return any((folder / name).exists() for name in (SUMS, ATTESTATION, PACK, SIGNER, SUITE, LEDGERS))


def read_target(folder: Path) -> StoredRun:
    """The finished run in a pack or run directory.

    Raises:
        ConfigError: there is no finished run.
        EvidenceError: a file is damaged or contradicts another.
    """
    run = read_pack(folder) if is_pack(folder) else read_run(folder)
    if run.results is None:
        raise ConfigError(f"{folder}: no results.json; finish the run with --resume")
    return run


def verify(target: Path, *, level: int = 3, signer: Path | None = None) -> Iterator[Check]:
    """Check a pack, a run directory, or the report.pdf in one; each check is given as it passes.

    Args:
        level: how far to go, 1 to 3.
        signer: the public key that must have signed; None: the key in the pack, which shows integrity alone.

    Raises:
        ConfigError: there is no finished run, or no such key.
        EvidenceError: a check failed; the first contradiction is named.
    """
    folder = find_folder(target)
    packed = is_pack(folder)
    if signer is not None:
        load_public(signer)
    digests = check_sums(folder) if packed else {}
    if packed:
        yield Check(1, "OK", f"{len(digests)} files: as {SUMS} has them, none added, none missing")
    run = read_target(folder)
    assert run.results is not None
    yield _signature(folder, run, digests, signer)
    yield from check_records(run, run.results)
    if (clips := check_clips(folder, run.plan)) is not None:
        yield clips
    if packed and (signed := pades.check_signed(folder)) is not None:
        yield signed
    if packed:
        yield _suite_digests(folder, run, digests)
    if (withheld := _withheld(folder, run)) is not None:
        yield withheld
    if level >= 2:
        yield from check_figures(run, run.results)
        if packed:
            yield _prompts(folder, run)
    if level >= 3:
        yield from check_derived(folder, run) if packed else check_report(folder)


def _signature(folder: Path, run: StoredRun, digests: dict[str, str], signer: Path | None) -> Check:
    """Who signed, as far as that can be known."""
    path = folder / ATTESTATION
    if not path.is_file():
        if signer is not None:
            raise EvidenceError(
                f"{folder}: is not signed, but --signer names who must have; ask for the signed pack"
            )
        if (folder / SIGNER).exists():
            raise EvidenceError(f"{folder}: holds {SIGNER} but no {ATTESTATION}; the signature was removed")
        return Check(
            1, "NOTE", "UNSIGNED: nothing says who made this; whoever changes a file can redo the digests"
        )
    inside = folder / SIGNER
    if not inside.is_file():
        raise EvidenceError(f"{folder}: holds {ATTESTATION} but no {SIGNER}; it was removed")
    payload = statement(digests, gates_of(run))
    if signer is not None:
        key = load_public(signer)
        check_envelope(path, payload, key, f"the key in {signer}")
        return Check(1, "OK", f"signed by {key.keyid}, the key in {signer}")
    try:
        key = parse_public(inside.read_bytes(), inside)
    except ConfigError as error:
        raise EvidenceError(str(error)) from None
    check_envelope(path, payload, key, f"the key in {inside}")
    return Check(
        1,
        "NOTE",
        f"signed by {key.keyid}, a key that lies in the pack: that shows integrity, not origin; name the "
        "expected signer's key with --signer",
    )


def _suite_digests(folder: Path, run: StoredRun, digests: dict[str, str]) -> Check:
    """suite/ holds exactly the files that the plan names."""
    planned = {f"{SUITE}/{f.name}": f.sha256 for f in run.plan.suite_files}
    found = {name: digest for name, digest in digests.items() if name.startswith(f"{SUITE}/")}
    for name in sorted(planned.keys() | found.keys()):
        if planned.get(name) != found.get(name):
            raise EvidenceError(f"{folder / name}: is not the file that plan.json names")
    return Check(1, "OK", f"{len(planned)} files of the suite: those that plan.json names")


def _withheld(folder: Path, run: StoredRun) -> Check | None:
    """Which items are withheld, if any; the list and the marks in the records must agree."""
    listed = read_redactions(folder)
    marked = {item_of(s): why for s in run.plan.samples if (why := reason_of(s)) is not None}
    if (listed.items if listed is not None else {}) != marked:
        raise EvidenceError(f"{folder / redacted.FILE}: does not list the items that plan.json withholds")
    if not marked:
        return None
    return Check(
        1,
        "NOTE",
        f"{len(marked)} items are withheld: their texts stand as salted digests, so that what was asked and "
        "answered there is not shown, and levels 4 and 5 cannot be reached",
    )


def _prompts(folder: Path, run: StoredRun) -> Check:
    """The suite's files give the plan's prompts, groups, controls and policy."""
    names = {f.name: folder / SUITE / f.name for f in run.plan.suite_files}
    try:
        loaded = next(
            suite
            for name, path in names.items()
            if name.endswith((".yaml", ".yml")) and (suite := _loaded(path, run)) is not None
        )
        samples = render_samples(loaded, limit=run.plan.limit)
    except (StopIteration, EvalkitError) as error:
        why = str(error) or "no file of it reads as the suite"
        return Check(2, "NOT CHECKED", f"the suite's prompts cannot be rendered here: {why}")
    if samples != run.plan.samples:
        raise EvidenceError(f"{folder / 'plan.json'}: samples: not what the files in {SUITE}/ give")
    if loaded.policy != run.plan.policy:
        raise EvidenceError(f"{folder / 'plan.json'}: policy: not the one in {SUITE}/")
    return Check(2, "OK", f"{len(samples)} prompts rendered again from {SUITE}/, equal")


def _loaded(path: Path, run: StoredRun) -> LoadedSuite | None:
    """The suite in `path` if it is the plan's; None if the file is another one (a policy)."""
    try:
        loaded = load_suite(path)
    except EvalkitError:
        return None
    return loaded if loaded.suite == run.plan.suite else None
