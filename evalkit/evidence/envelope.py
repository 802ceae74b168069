"""The signed statement of a pack: an in-toto test result in a DSSE envelope.

1. Statement (in-toto Statement v1): the subjects are all files of the pack by digest; the predicate
   (test-result v0.1) says which rules passed, failed or stayed open. It follows from the pack alone, so that
   a checker writes it again and compares.
2. It is canonical JSON (RFC 8785), signed over DSSE's pre-authentication encoding with ed25519
   (securesystemslib).
3. The envelope is canonical JSON too: one signature, one byte sequence; anything else is refused.

Sources: in-toto attestation framework, spec/v1/statement.md and spec/predicates/test-result.md;
github.com/secure-systems-lab/dsse, protocol.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import rfc8785
from pydantic import JsonValue
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from evalkit.errors import EvidenceError
from evalkit.evidence.sums import ATTESTATION
from evalkit.junit import gate_label
from evalkit.records import GateResult

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://in-toto.io/attestation/test-result/v0.1"


def statement(digests: Mapping[str, str], gates: Sequence[GateResult]) -> bytes:
    """The statement over the files of a pack, canonical JSON.

    Args:
        digests: file → SHA-256, the envelope excluded.
        gates: the verdicts that the report prints.
    """
    named = {
        v: sorted(gate_label(g) for g in gates if g.verdict == v) for v in ("pass", "inconclusive", "fail")
    }
    configuration = [n for n in digests if n == "plan.json" or n.startswith("suite/")]
    predicate: dict[str, JsonValue] = {
        "result": "FAILED"
        if named["fail"]
        else "PASSED"
        if gates and not named["inconclusive"]
        else "WARNED",
        "configuration": [_descriptor(n, digests[n]) for n in sorted(configuration)],
        "passedTests": list(named["pass"]),
        "warnedTests": list(named["inconclusive"]),
        "failedTests": list(named["fail"]),
    }
    return rfc8785.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": [_descriptor(n, digests[n]) for n in sorted(digests) if n != ATTESTATION],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
    )


def sign(payload: bytes, signer: CryptoSigner) -> bytes:
    """The envelope around `payload`, canonical JSON."""
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return rfc8785.dumps(envelope.to_dict())


def check_envelope(path: Path, payload: bytes, key: SSlibKey, named: str) -> None:
    """The envelope in `path` is `key`'s, and what it signs is `payload`.

    Args:
        named: whose key that is, in words, for the message.

    Raises:
        EvidenceError: it is damaged, signed by another key, or signs something else.
    """
    envelope = _read_envelope(path)
    [(key_id, _)] = envelope.signatures.items()
    if key_id != key.keyid:
        raise EvidenceError(f"{path}: signed by the key {key_id}, not by {named} ({key.keyid}); wrong signer")
    try:
        envelope.verify([key], 1)
    except VerificationError:
        raise EvidenceError(
            f"{path}: the signature is not one of the key {key.keyid}; the envelope was changed or forged"
        ) from None
    if envelope.payload != payload or envelope.payload_type != PAYLOAD_TYPE:
        raise EvidenceError(f"{path}: signs other files or verdicts than those of this pack")


def _read_envelope(path: Path) -> Envelope:
    """The envelope in `path`; it has one signature and is canonical."""
    try:
        data = path.read_bytes()
        envelope = Envelope.from_dict(json.loads(data))
        canonical = rfc8785.dumps(envelope.to_dict()) == data
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SigningError):
        raise EvidenceError(f"{path}: not a DSSE envelope; it was changed") from None
    if not canonical or len(envelope.signatures) != 1:
        raise EvidenceError(
            f"{path}: not canonical JSON with one signature, as evalkit writes it; it was changed"
        )
    return envelope


def _descriptor(name: str, digest: str) -> JsonValue:
    return {"name": name, "digest": {"sha256": digest}}
