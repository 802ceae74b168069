"""A run → an evidence pack: one folder that holds all that a stranger needs to check the audit.

1. The run is checked at levels 1 and 2; what contradicts itself is not packed.
2. The run's own files are copied, the suite's files are found by digest, and the report, its figures and
   the exports are drawn from the records. A report.pdf in the run that would be drawn otherwise is refused.
3. SHA256SUMS lists every file; with a key, an envelope signs them.
4. Everything is written into a folder beside the pack's place, which then takes its name: whole or not.

No clock and no host name: one run gives one pack, byte for byte (but for `--pades`, whose time is real).
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from securesystemslib.signer import CryptoSigner

from evalkit.digests import digest_bytes, digest_code, digest_file
from evalkit.errors import ConfigError, EvidenceError, RunError
from evalkit.evidence import pades
from evalkit.evidence.bom import bom
from evalkit.evidence.clips import MEDIA, check_clips
from evalkit.evidence.envelope import sign, statement
from evalkit.evidence.exports import json_bytes, seed_of
from evalkit.evidence.keys import public_pem
from evalkit.evidence.oscal import assessment_results
from evalkit.evidence.recount import check_figures, check_records
from evalkit.evidence.sums import ATTESTATION, SUMS, sums_text
from evalkit.installed import lock_text, version
from evalkit.junit import gate_suite, junit_xml, sample_suites
from evalkit.records import GateResult, Manifest, Record, Results, Sha256, json_text
from evalkit.redacted import FILE as REDACTIONS
from evalkit.report import draw_pdf, draw_report
from evalkit.report.nouns import Figure, ReportView
from evalkit.store import StoredRun, read_run
from evalkit.suites import shipped_suites

PACK, SIGNER, SUITE, LEDGERS, FIGURES = "pack.json", "signer.pub", "suite", "attributions", "figures"
COPIED = ("plan.json", "manifest.json", "samples.jsonl", "results.json", "gate.json", "auditor.yaml")
_CHAINED = ("attributions.jsonl", "interventions.jsonl", "readings.jsonl")

_TITLE = re.compile("<title>([^<]*)</title>")

Content = bytes | Path


class PackRecord(Record):
    """pack.json: what made the pack."""

    schema_version: Literal[1] = 1
    run_id: str
    evalkit: str
    code_sha256: Sha256
    """Digest of the evalkit that drew the report and the exports."""


class Packed(NamedTuple):
    """A pack on the disk."""

    folder: Path
    n_files: int
    sha256: str
    """Digest of SHA256SUMS: names the whole pack, its envelope excepted."""
    key_id: str | None
    """None: it is not signed."""


def pack_run(
    run_dir: Path,
    out: Path,
    *,
    signer: CryptoSigner | None = None,
    suite: Path | None = None,
    certificate: pades.Certificate | None = None,
    withheld: Mapping[str, str] | None = None,
) -> Packed:
    """Write the run in `run_dir` as a pack to `out`.

    Args:
        suite: the suite's file; default: where the run found it, else the shipped one of these digests.
        certificate: also add a copy of the PDF that carries its own signature.
        withheld: text → the item it belongs to; none of them may stand in the pack (`redaction.py`).

    Raises:
        ConfigError: `out` is not empty, a withheld text stands in a file, or a file of the suite was changed
            or is not there.
        EvidenceError: the run contradicts itself.
        RunError: the run is not finished, or the pack cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists and is not empty; choose another --out")
    run = read_run(run_dir)
    if run.results is None:
        raise RunError(f"{run_dir}: no results.json; finish the run with --resume")
    for _ in (*check_records(run, run.results), *check_figures(run, run.results)):
        pass  # each raises if it fails
    check_clips(run_dir, run.plan)
    derived = derived_files(run_dir, run)
    _same_pdf(run_dir / "report.pdf", derived["report.pdf"])
    files: dict[str, Content] = {**_own_files(run), **suite_files(run, suite), **derived}
    _refuse_withheld(files, withheld or {})
    if certificate is not None:
        files[pades.SIGNED] = pades.signed_copy(derived["report.pdf"], certificate)
    if signer is not None:
        files[SIGNER] = public_pem(signer.public_key)
    digests = {name: _digest(content) for name, content in files.items()}
    sums = sums_text(digests).encode()
    files[SUMS], digests[SUMS] = sums, digest_bytes(sums)
    if signer is not None:
        files[ATTESTATION] = sign(statement(digests, gates_of(run)), signer)
    _write(files, out)
    key_id = signer.public_key.keyid if signer is not None else None
    return Packed(out, len(files), digests[SUMS], key_id)


def read_pack(folder: Path) -> StoredRun:
    """The run inside a pack; see `store.read_run`."""
    return read_run(folder, ledgers=folder / LEDGERS)


def gates_of(run: StoredRun) -> tuple[GateResult, ...]:
    """The verdicts that the report prints: those of gate.json, else those of results.json."""
    assert run.results is not None
    return run.gate.gates if run.gate is not None else run.results.gates


# --------------------------------------------------------------------------------------- what goes in


def derived_files(folder: Path, run: StoredRun) -> dict[str, bytes]:
    """Name → bytes of every file that follows from the run's records: report, figures, exports."""
    manifest, results = run.manifest, run.results
    assert manifest is not None and results is not None
    raw = (folder / "results.json").read_bytes()
    drawn = draw_report(folder)
    made_by = PackRecord(run_id=results.run.id, evalkit=version(), code_sha256=digest_code())
    return {
        PACK: json_text(made_by).encode(),
        **_manifests(manifest),
        **_exports(run, results, digest_bytes(raw)),
        "report.html": drawn.html.encode(),
        "report.pdf": draw_pdf(drawn.html, results_json=raw),
        **_figures(drawn.view),
    }


def _manifests(manifest: Manifest) -> dict[str, bytes]:
    environment = manifest.environment
    return {
        "model.manifest.json": json_text(manifest.model).encode(),
        "sae.manifest.json": json_bytes([s.model_dump(mode="json") for s in manifest.saes]),
        "environment.json": json_text(environment).encode(),
        "requirements.lock": lock_text(environment).encode(),
        "command.txt": (shlex.join(manifest.command) + "\n").encode(),
    }


def _exports(run: StoredRun, results: Results, results_sha256: str) -> dict[str, bytes]:
    seed, gates = seed_of(results_sha256), gates_of(run)
    suites = ([gate_suite(gates)] if gates else []) + list(sample_suites(results.samples))
    oscal = assessment_results(results, gates, run.plan_sha256, results_sha256, seed)
    return {
        "bom.cdx.json": bom(results, run.plan, seed),
        "oscal/assessment-results.json": oscal,
        "junit.xml": junit_xml(f"{results.suite.id} on {results.model.ref}", suites),
    }


def _figures(view: ReportView) -> dict[str, bytes]:
    """Every chart of the report as an SVG file of its own, numbered in the report's order."""
    files = {}
    for number, figure in enumerate(_charts(view), start=1):
        title = _TITLE.search(figure.svg)
        slug = re.sub(r"[^a-z0-9]+", "-", title[1].lower() if title else "chart").strip("-")[:48].strip("-")
        files[f"{FIGURES}/{number:02d}-{slug}.svg"] = (str(figure.svg) + "\n").encode()
    return files


def _charts(part: object) -> Iterator[Figure]:
    """The figures anywhere inside a view, in order."""
    if isinstance(part, Figure):
        yield part
    elif isinstance(part, tuple):
        for inner in part:
            yield from _charts(inner)


def _own_files(run: StoredRun) -> dict[str, Content]:
    present = {name: run.folder / name for name in (*COPIED, REDACTIONS) if (run.folder / name).is_file()}
    chained = {f"{LEDGERS}/{n}": run.folder / n for n in _CHAINED if (run.folder / n).is_file()}
    maps = {f"maps/{path.name}": path for path in sorted((run.folder / "maps").glob("*.yaml"))}
    clips = {f"{MEDIA}/{path.name}": path for path in sorted((run.folder / MEDIA).glob("*"))}
    return {**present, **chained, **maps, **clips}


def suite_files(run: StoredRun, suite: Path | None) -> dict[str, Path]:
    """The suite's files as the plan names them, from the first place where all digests agree."""
    assert run.manifest is not None
    stored = run.manifest.options.get("suite")
    places = [run.folder / str(stored)] if stored is not None else []
    places = [suite] if suite is not None else [*places, *shipped_suites().values()]
    for place in places:
        files = {f"{SUITE}/{f.name}": (place.parent / f.name).resolve() for f in run.plan.suite_files}
        wanted = {f"{SUITE}/{f.name}": f.sha256 for f in run.plan.suite_files}
        if all(path.is_file() and _digest(path) == wanted[name] for name, path in files.items()):
            return files
    raise ConfigError(
        f"{suite or run.plan.suite.id}: the suite's files are not as plan.json has them, or not there; name "
        "the suite that the run read with --suite"
    )


def _refuse_withheld(files: Mapping[str, Content], withheld: Mapping[str, str]) -> None:
    """No withheld text stands in a file, plain or as JSON or HTML has it; the PDF is drawn from the HTML."""
    for name, content in files.items():
        data = content.read_bytes() if isinstance(content, Path) else content
        for text, item in withheld.items():
            forms = {
                text,
                html.escape(text),
                json.dumps(text)[1:-1],
                json.dumps(text, ensure_ascii=False)[1:-1],
            }
            if any(form.strip().encode("utf-8", "surrogatepass") in data for form in forms):
                raise ConfigError(
                    f"redact: '{item}': a text of it also stands in {name}; withhold the items that quote it "
                    "too, or take it out of the suite's descriptions and templates"
                )


def _same_pdf(path: Path, drawn: Content) -> None:
    """A report that was handed out must be the one in the pack."""
    if path.is_file() and path.read_bytes() != drawn:
        raise EvidenceError(
            f"{path}: is not what this evalkit draws from the records; draw it again with `evalkit report`"
        )


# -------------------------------------------------------------------------------------------- writing


def _digest(content: Content) -> str:
    return digest_file(content).sha256 if isinstance(content, Path) else digest_bytes(content)


def _write(files: dict[str, Content], out: Path) -> None:
    """All files in `out`, whole or not at all."""
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    except OSError as error:
        raise RunError(f"{out}: cannot write ({error.strerror}); choose another --out") from error
    try:
        for name, content in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.chmod(0o755)
        os.replace(part, out)
    except OSError as error:
        raise RunError(
            f"{out}: cannot write ({error.strerror}); make room or choose another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(part)
