"""A run → the same run with items withheld, packed: texts give way to salted digests, figures stay.

1. In the suite's files, every value of a withheld item that is text or a number gives way to a mark with
   reason and digest (`redacted.py`); id, group, counterfactual, control and validity stay, spans go.
2. The prompts are rendered again from those files: plan.json holds what they give, so level 2 checks it.
3. In the records, responses and the tokens of attributions give way too; the chains are linked again over
   what then stands. No outcome, margin, node or intervention is touched.
4. results.json keeps every figure; `pack_run` computes all of it again from the redacted records.
5. Whatever was withheld is looked for in every file before the pack is written; found, nothing is written.

The salts and the texts go into a file of their own, which stays with whoever packs.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue
from securesystemslib.signer import CryptoSigner

from evalkit import redacted
from evalkit.chain import UNCHAINED, Chain, Link
from evalkit.digests import digest_bytes
from evalkit.documents import MAX_DOCUMENT_BYTES, Source, decode, parse_yaml, plain, read_bytes
from evalkit.errors import ConfigError, EvalkitError, RunError
from evalkit.evidence.clips import MEDIA
from evalkit.evidence.packing import COPIED, SUITE, Packed, pack_run, suite_files
from evalkit.records import Attribution, Sample, SampleRecord, json_text
from evalkit.redacted import Redactions, item_of, mark, original_text, salted, texts_in
from evalkit.store import (
    ATTRIBUTIONS,
    INTERVENTIONS,
    MANIFEST,
    PLAN,
    READINGS,
    RESULTS,
    SAMPLES,
    StoredRun,
    read_run,
)
from evalkit.suites import LoadedSuite, load_suite, render_samples

_STAYS = frozenset({"id", "group", "counterfactual", "control", "validity", "stated", "triage"})
SEARCHED = 12
"""Characters; chosen: a shorter text (an answer, a name) also stands in texts that are nobody's secret."""


class RedactedPack(NamedTuple):
    """A pack that withholds items."""

    pack: Packed
    openings: Path
    """Salts and texts; hand out single lines of it, never the file."""
    shared: tuple[str, ...]
    """Withheld items of which a text also stands, whole, in an item that is not withheld."""


class _Veil:
    """Holds the salts: one text of one item has one salt, and so one digest."""

    def __init__(self, items: dict[str, str]) -> None:
        self.items = items
        self.salts: dict[tuple[str, str], str] = {}

    def text(self, item: str, text: str) -> str:
        """The mark that stands for `text`."""
        salt = self.salts.setdefault((item, text), secrets.token_hex(32))
        return mark(self.items[item], salt, text)

    def value(self, item: str, value: JsonValue) -> JsonValue:
        """`value` with its shape kept, its texts and numbers withheld."""
        if isinstance(value, dict):
            return {key: self.value(item, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self.value(item, inner) for inner in value]
        if value is None or isinstance(value, bool):
            return value
        return self.text(item, value if isinstance(value, str) else json.dumps(value))

    def fields(self, fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """An item as written, withheld if it is to be."""
        item = str(fields["id"])
        if item not in self.items:
            return fields
        kept = {key: value for key, value in fields.items() if key != "spans"}
        return {key: v if key in _STAYS else self.value(item, v) for key, v in kept.items()}

    def original(self, run: StoredRun) -> str:
        """The salted digest of the run before redaction."""
        text = original_text(run.plan_sha256, run.heads)
        return salted(self.salts.setdefault(("", text), secrets.token_hex(32)), text)

    def openings(self) -> bytes:
        """One line per text: item (of the original run's: none), digest, salt, text."""
        lines = [
            {"item": item or None, "sha256": salted(salt, text), "salt": salt, "text": text}
            for (item, text), salt in self.salts.items()
        ]
        return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_items(path: Path) -> dict[str, str]:
    """Item id → reason, from a YAML file.

    Raises:
        ConfigError: it is not such a mapping.
    """
    source = Source(str(path), ConfigError)
    value = plain(parse_yaml(decode(read_bytes(path, source, MAX_DOCUMENT_BYTES), source), source))
    try:
        checked = Redactions.model_validate({"items": value, "original_sha256": "0" * 64})
    except ValueError:
        checked = None
    if checked is None or not checked.items:
        raise ConfigError(
            f"{path}: needs 'item id: reason' lines; a reason has 1 to 200 characters, no brackets"
        )
    return dict(checked.items)


def pack_redacted(
    run_dir: Path,
    out: Path,
    items: dict[str, str],
    *,
    signer: CryptoSigner | None = None,
    suite: Path | None = None,
) -> RedactedPack:
    """Write the run in `run_dir` as a pack that withholds `items`, and their salts beside it.

    Raises:
        ConfigError: an item is not in the run, cannot be withheld, or its text would still be in the pack.
        EvidenceError: the run contradicts itself.
        RunError: the run is not finished, or something cannot be written.
    """
    run = read_run(run_dir)
    _refuse_what_cannot_be(run, items)
    openings = out.with_name(f"{out.name}.openings.jsonl")
    if openings.exists():
        raise ConfigError(f"{openings}: exists, and may be the only copy of another pack's salts; move it")
    veil = _Veil(items)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        loaded = _suite(run, suite, place / SUITE, veil)
        _records(run, loaded, place / "run", veil)
        open_texts = {t.strip() for s in _open(run, items) for t in s}
        hidden = {(i, t) for i, t in veil.salts if i and len(t.strip()) >= SEARCHED}
        shared = sorted({i for i, t in hidden if t.strip() in open_texts})
        withheld = {t: i for i, t in sorted(hidden) if t.strip() not in open_texts}
        _write_private(openings, veil.openings())
        try:
            pack = pack_run(place / "run", out, signer=signer, suite=loaded.path, withheld=withheld)
        except BaseException:
            openings.unlink()
            raise
    return RedactedPack(pack, openings, tuple(shared))


def _refuse_what_cannot_be(run: StoredRun, items: dict[str, str]) -> None:
    if run.results is None:
        raise RunError(f"{run.folder}: no results.json; finish the run with --resume")
    known = {item_of(s) for s in run.plan.samples}
    for item in items:
        if item not in known:
            raise ConfigError(f"redact: '{item}': no such item in the run; write the id as the suite does")
    for sample in run.plan.samples:
        if sample.clip is not None and item_of(sample) in items:
            raise ConfigError(f"redact: '{item_of(sample)}': has a clip, and sound cannot be withheld")
        if sample.episode is not None and item_of(sample) in items:
            raise ConfigError(f"redact: '{item_of(sample)}': an episode's transcripts cannot be withheld yet")


def _open(run: StoredRun, items: dict[str, str]) -> Iterable[set[str]]:
    """The texts of each sample that is not withheld."""
    for record in run.samples:
        if item_of(record.sample) not in items:
            yield set(texts_in(record.model_dump(mode="json")))


# --------------------------------------------------------------------------------- the suite's files


def _suite(run: StoredRun, suite: Path | None, folder: Path, veil: _Veil) -> LoadedSuite:
    """The suite's files in `folder`, their withheld items marked, loaded again."""
    found = {name.removeprefix(f"{SUITE}/"): path for name, path in suite_files(run, suite).items()}
    main = next((n for n in found if n.endswith((".yaml", ".yml")) and _is_suite(found[n], run)), None)
    if main is None:
        raise ConfigError(f"{run.plan.suite.id}: no file of the suite reads as the suite of plan.json")
    named = {p.samples for p in run.plan.suite.probes if isinstance(p.samples, str)}
    for name, path in found.items():
        data = path.read_bytes()
        if name == main:
            data = _inline(path, data, veil)
        elif name in named:
            data = _lines(data, veil)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return load_suite(folder / main)


def _is_suite(path: Path, run: StoredRun) -> bool:
    try:
        return load_suite(path).suite == run.plan.suite
    except EvalkitError:
        return False


def _inline(path: Path, data: bytes, veil: _Veil) -> bytes:
    """The suite's file; written again, as JSON (which YAML reads), only if it holds a withheld item."""
    source = Source(str(path), ConfigError)
    root: Any = plain(parse_yaml(decode(data, source), source))
    before = json.dumps(root)
    for probe in root["probes"]:
        if isinstance(probe["samples"], list):
            probe["samples"] = [veil.fields(fields) for fields in probe["samples"]]
    changed = json.dumps(root) != before
    return (json.dumps(root, indent=1, ensure_ascii=False) + "\n").encode() if changed else data


def _lines(data: bytes, veil: _Veil) -> bytes:
    """A file of samples; only lines of withheld items change."""
    lines = []
    for line in data.split(b"\n"):
        fields = json.loads(line) if line.strip() else None
        again = veil.fields(fields) if fields is not None else None
        lines.append(line if again == fields else json.dumps(again, ensure_ascii=False).encode())
    return b"\n".join(lines)


# ----------------------------------------------------------------------------------------- the records


def _records(run: StoredRun, loaded: LoadedSuite, folder: Path, veil: _Veil) -> None:
    """The run's own files in `folder`, marked, linked, and of one plan."""
    folder.mkdir()
    for name in COPIED:
        if name != SAMPLES and (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)
    for name in ("maps", MEDIA):
        if (run.folder / name).is_dir():
            shutil.copytree(run.folder / name, folder / name)
    samples = render_samples(loaded, limit=run.plan.limit)
    if [s.id for s in samples] != [s.id for s in run.plan.samples]:
        raise ConfigError("redact: without their texts the suite's items are others; withhold fewer")
    changes = {"suite": loaded.suite, "suite_files": loaded.files, "suite_sha256": loaded.sha256}
    plan = run.plan.model_copy(update={**changes, "samples": samples})
    (folder / PLAN).write_text(json_text(plan), "utf-8")
    genesis = digest_bytes((folder / PLAN).read_bytes())
    by_id = {s.id: s for s in samples}
    item = {s.id: item_of(s) for s in samples if item_of(s) in veil.items}
    responses = [_response(r, by_id[r.sample.id], item.get(r.sample.id), veil) for r in run.samples]
    attributions = [
        a.model_copy(update={"attribution": _no_tokens(a.attribution)}) if a.sample in item else a
        for a in run.attributions
    ]
    heads = {
        SAMPLES: _chained(folder / SAMPLES, responses, genesis),
        ATTRIBUTIONS: _chained(folder / ATTRIBUTIONS, attributions, genesis),
        INTERVENTIONS: _chained(folder / INTERVENTIONS, run.interventions, genesis),
    }
    if READINGS in run.heads:
        heads[READINGS] = _chained(folder / READINGS, run.readings, genesis)
    _edit(folder / MANIFEST, lambda found: found.update(plan_sha256=genesis))
    _edit(folder / RESULTS, lambda found: _results(found, genesis, heads, loaded, responses, item))
    listed = Redactions(items=veil.items, original_sha256=veil.original(run))
    (folder / redacted.FILE).write_text(json_text(listed), "utf-8")


def _response(record: SampleRecord, sample: Sample, item: str | None, veil: _Veil) -> SampleRecord:
    if item is None:
        return record.model_copy(update={"sample": sample})
    names = ("prompt_text", "text", "fail_text", "safe_text", "error")
    stated = {name: getattr(record.response, name) for name in names}
    marks = {name: veil.text(item, text) for name, text in stated.items() if text is not None}
    score = record.score
    if score.outcome != "unscored" and score.reason is not None:  # a scorer's remark may quote the text
        score = score.model_copy(update={"reason": veil.text(item, score.reason)})
    response = record.response.model_copy(update={**marks, "words": None})
    return record.model_copy(update={"sample": sample, "response": response, "score": score})


def _no_tokens(attribution: Attribution) -> Attribution:
    nodes = tuple(n.model_copy(update={"token": redacted.TOKEN}) for n in attribution.nodes)
    return attribution.model_copy(update={"nodes": nodes})


def _chained(path: Path, records: Iterable[Link], genesis: str) -> str:
    """Write the records, linked again; the digest of the last line."""
    unlinked = [r.model_copy(update={"previous": UNCHAINED}) for r in records]
    if not unlinked:
        path.touch()
        return genesis
    chain = Chain(path, type(unlinked[0]), genesis)
    try:
        chain.append(unlinked)
        return chain.head
    finally:
        chain.close()


def _results(
    found: dict[str, Any],
    genesis: str,
    heads: dict[str, str],
    loaded: LoadedSuite,
    records: Iterable[SampleRecord],
    items: dict[str, str],
) -> None:
    """results.json as it stands, but for digests and the withheld texts: no figure is touched."""
    found["run"] |= {"plan_sha256": genesis, "heads": heads}
    found["suite"]["sha256"] = loaded.sha256
    by_id = {r.sample.id: r for r in records}
    for entry in found["samples"]:
        if entry["id"] not in items:
            continue
        record = by_id[entry["id"]]
        said = {
            "prompt": record.sample.messages[-1].content,
            "response": record.response.text,
            "safe": record.sample.safe,
            "fail": record.sample.fail,
            "reason": record.score.reason,
            "words": None,
        }
        entry |= {key: text for key, text in said.items() if key in entry}
        for node in (entry["attribution"] or {}).get("nodes", ()):
            node["token"] = redacted.TOKEN


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads(path.read_bytes())
    change(found)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _write_private(path: Path, data: bytes) -> None:
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
    except OSError as error:
        raise RunError(f"{path}: cannot write ({error.strerror}); choose another --out") from error
