"""The signed copy of the PDF: the unsigned one first, then a signature over all of it."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from tamper_table import caught_at, reseal
from tiny_audit import command

from evalkit.errors import ConfigError
from evalkit.evidence.pades import SIGNED, Certificate, check_signed, signed_copy


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate of an auditor who does not exist."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test Auditor")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    usage = x509.KeyUsage(True, True, False, False, False, False, False, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "auditor.p12"
    path.write_bytes(
        pkcs12.serialize_key_and_certificates(b"auditor", key, made, None, BestAvailableEncryption(b"secret"))
    )
    return Certificate(path, "secret")


@pytest.fixture
def pack(run: Path, tmp_path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVALKIT_PADES_PASSPHRASE", certificate.passphrase)
    done = command("pack", run, "--out", tmp_path / "pack", "--pades", certificate.path)
    assert done.code == 0, done.err
    return tmp_path / "pack"


def test_the_unsigned_report_is_the_first_part_of_the_signed_one(pack: Path) -> None:
    unsigned, signed = (pack / "report.pdf").read_bytes(), (pack / SIGNED).read_bytes()
    assert signed.startswith(unsigned) and b"/ETSI.CAdES.detached" in signed[len(unsigned) :]
    done = command("verify", pack / SIGNED)
    assert done.code == 0, done.err
    assert "Test Auditor; whether to trust that certificate is yours to decide" in done.out


def test_a_signed_copy_of_another_report_is_found(pack: Path) -> None:
    data = (pack / SIGNED).read_bytes()
    for changed, said in (
        (b"%" + data, "does not begin with report.pdf"),
        (data + b"\n% more\n", "its signature does not cover the file as it is"),
        ((pack / "report.pdf").read_bytes(), "its signature does not cover the file as it is"),
    ):
        (pack / SIGNED).write_bytes(changed)
        reseal(pack, None, redraw=False)
        level, words = caught_at(pack, deepest=1)
        assert level == 1 and said in words


def test_without_pyhanko_it_says_what_to_install(
    pack: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyhanko", None)
    check = check_signed(pack)
    assert check is not None and check.word == "NOTE" and "evalkit-audit[pades]" in check.sentence
    with pytest.raises(ConfigError, match="pip install 'evalkit-audit\\[pades\\]'"):
        signed_copy(b"", certificate)


def test_a_wrong_passphrase_is_named(certificate: Certificate, pack: Path) -> None:
    with pytest.raises(ConfigError, match="not a PKCS#12 file that opens with the passphrase"):
        signed_copy((pack / "report.pdf").read_bytes(), certificate._replace(passphrase="no"))
