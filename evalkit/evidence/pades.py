"""A copy of report.pdf that carries its own signature (PAdES), for those who file the PDF alone.

The signature is an incremental update: the unsigned report.pdf is the first part of the signed file, byte for
byte. A signature field breaks PDF/UA, so both copies stand in the pack. Needs `evalkit-audit[pades]`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.errors import ConfigError, EvidenceError
from evalkit.evidence.checks import Check

SIGNED = "report.signed.pdf"
_FIELD = "Auditor"


class Certificate(NamedTuple):
    """A PKCS#12 file and its passphrase."""

    path: Path
    passphrase: str


def signed_copy(pdf: bytes, certificate: Certificate) -> bytes:
    """`pdf` with a PAdES signature appended.

    Raises:
        ConfigError: pyhanko is not installed, or the certificate cannot be used.
    """
    if _pyhanko() is None:
        raise ConfigError("--pades: needs pyhanko; pip install 'evalkit-audit[pades]'")
    from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
    from pyhanko.sign import fields, signers

    signer = signers.SimpleSigner.load_pkcs12(
        str(certificate.path), passphrase=certificate.passphrase.encode() or None
    )
    if signer is None:
        raise ConfigError(
            f"{certificate.path}: not a PKCS#12 file that opens with the passphrase in "
            "EVALKIT_PADES_PASSPHRASE"
        )
    meta = signers.PdfSignatureMetadata(field_name=_FIELD, subfilter=fields.SigSeedSubFilter.PADES)
    out = io.BytesIO()
    signers.sign_pdf(IncrementalPdfFileWriter(io.BytesIO(pdf)), meta, signer=signer, output=out)
    return out.getvalue()


def check_signed(folder: Path) -> Check | None:
    """The signed copy begins with report.pdf, and its signature covers all of it; None if there is none.

    Raises:
        EvidenceError: it does not, or the signature is broken.
    """
    path = folder / SIGNED
    if not path.is_file():
        return None
    data, unsigned = path.read_bytes(), (folder / "report.pdf").read_bytes()
    if not data.startswith(unsigned):
        raise EvidenceError(f"{path}: does not begin with report.pdf; it signs another report")
    if _pyhanko() is None:
        return Check(1, "NOTE", f"{SIGNED}: begins with report.pdf; its signature needs evalkit-audit[pades]")
    from pyhanko.pdf_utils.misc import PdfError
    from pyhanko.pdf_utils.reader import PdfFileReader
    from pyhanko.sign.validation import validate_pdf_signature
    from pyhanko.sign.validation.errors import SignatureValidationError
    from pyhanko.sign.validation.status import SignatureCoverageLevel

    try:
        [signature] = PdfFileReader(io.BytesIO(data)).embedded_signatures
        status = validate_pdf_signature(signature)
        covered = status.intact and status.valid and status.coverage == SignatureCoverageLevel.ENTIRE_FILE
    except (PdfError, SignatureValidationError, ValueError):  # none, several, or none that can be read
        covered = False
    if not covered:
        raise EvidenceError(f"{path}: its signature does not cover the file as it is")
    name = signature.signer_cert.subject.human_friendly
    return Check(1, "OK", f"{SIGNED}: signed by {name}; whether to trust that certificate is yours to decide")


def _pyhanko() -> Any:
    try:
        import pyhanko
    except ImportError:
        return None
    return pyhanko
