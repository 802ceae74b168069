"""Keys: the private one is private from its first moment, and nothing is overwritten."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tiny_audit import command

from evalkit.errors import ConfigError
from evalkit.evidence.keys import KeyPair, load_public, load_signer


def test_keygen_writes_a_private_and_a_public_key(tmp_path: Path) -> None:
    done = command("keygen", "--out", tmp_path / "new")
    assert done.code == 0, done.err
    private, public = tmp_path / "new" / "evalkit-signing.key", tmp_path / "new" / "evalkit-signing.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    signer, key = load_signer(private), load_public(public)
    assert signer.public_key == key and key.keyid in done.out
    signature = signer.sign(b"data")
    key.verify_signature(signature, b"data")
    with pytest.raises(Exception, match="Failed to verify"):
        key.verify_signature(signature, b"date")


def test_openssl_reads_the_public_key(keys: KeyPair) -> None:
    asked = ["openssl", "pkey", "-pubin", "-in", str(keys.public), "-noout", "-text"]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert "ED25519" in done.stdout, done.stderr


def test_keygen_overwrites_nothing_and_stays_out_of_packs(tmp_path: Path, copy: Path) -> None:
    assert command("keygen", "--out", tmp_path).code == 0
    before = (tmp_path / "evalkit-signing.key").read_bytes()
    done = command("keygen", "--out", tmp_path)
    assert done.code == 2 and "exists and is not overwritten" in done.error
    assert (tmp_path / "evalkit-signing.key").read_bytes() == before
    done = command("keygen", "--out", copy)
    assert done.code == 2 and "a private key never lies in one" in done.error
    (tmp_path / "file").touch()
    done = command("keygen", "--out", tmp_path / "file")
    assert done.code == 2 and "cannot write a key" in done.error


def test_a_key_half_written_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def no_public(path: os.PathLike[str], *rest: int) -> int:
        if str(path).endswith(".pub"):
            raise OSError(28, "No space left on device")
        return real(path, *rest)

    monkeypatch.setattr(os, "open", no_public)
    done = command("keygen", "--out", tmp_path)
    assert done.code == 2 and "No space left" in done.error and not any(tmp_path.iterdir())


def test_what_is_no_key_is_refused(tmp_path: Path, keys: KeyPair) -> None:
    other = rsa.generate_private_key(65537, 2048)
    pem = serialization.Encoding.PEM
    (tmp_path / "rsa").write_bytes(
        other.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "rsa.pub").write_bytes(
        other.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "open").write_bytes(keys.private.read_bytes())
    (tmp_path / "rsa").chmod(0o600)
    (tmp_path / "open").chmod(0o644)
    with pytest.raises(ConfigError, match="not an unencrypted ed25519 private key"):
        load_signer(tmp_path / "rsa")
    with pytest.raises(ConfigError, match="others can read this private key; `chmod 600"):
        load_signer(tmp_path / "open")
    with pytest.raises(ConfigError, match="cannot read"):
        load_signer(tmp_path / "absent")
    for name in (tmp_path / "rsa.pub", keys.private):
        with pytest.raises(ConfigError, match="not an ed25519 public key"):
            load_public(name)
