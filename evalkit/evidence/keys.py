"""ed25519 keys as PEM files: the private one to keep (mode 600), the public one to hand out.

A key that lies in a pack proves that the pack is whole, never who made it: hand the public key, or its
digest, over by another way.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from evalkit.errors import ConfigError

PRIVATE, PUBLIC = "evalkit-signing.key", "evalkit-signing.pub"


class KeyPair(NamedTuple):
    """Where a new key lies, and its id."""

    private: Path
    public: Path
    key_id: str


def make_keys(folder: Path) -> KeyPair:
    """Write a new key pair into `folder`; nothing is overwritten.

    Raises:
        ConfigError: a key is there already, `folder` is a pack, or it cannot be written.
    """
    if (folder / "SHA256SUMS").exists():
        raise ConfigError(
            f"{folder}: is an evidence pack; a private key never lies in one; choose another --out"
        )
    private, public = folder / PRIVATE, folder / PUBLIC
    signer = CryptoSigner.generate_ed25519()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (private, public):
            if path.exists():
                raise ConfigError(f"{path}: exists and is not overwritten; choose another --out")
        _write_new(private, signer.private_bytes, 0o600)
        try:
            _write_new(public, public_pem(signer.public_key), 0o644)
        except OSError:
            with contextlib.suppress(OSError):
                private.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write a key ({error.strerror}); choose another --out") from error
    return KeyPair(private, public, signer.public_key.keyid)


def load_signer(path: Path) -> CryptoSigner:
    """The signer behind a private key file.

    Raises:
        ConfigError: it cannot be read, is no ed25519 private key, or others can read it.
    """
    data = _read(path)
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path}: others can read this private key; `chmod 600 {path}`")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{path}: not an unencrypted ed25519 private key (PEM); make one with `evalkit keygen`"
        )
    return CryptoSigner(key)


def load_public(path: Path) -> SSlibKey:
    """The public key in a PEM file.

    Raises:
        ConfigError: it cannot be read, or is no ed25519 public key.
    """
    return parse_public(_read(path), path)


def parse_public(data: bytes, path: Path) -> SSlibKey:
    """The public key in PEM bytes; `path` names the place.

    Raises:
        ConfigError: it is no ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(
            f"{path}: not an ed25519 public key (PEM); name the {PUBLIC} that `evalkit keygen` wrote"
        )
    return SSlibKey.from_crypto(key)


def public_pem(key: SSlibKey) -> bytes:
    """The public key as PEM, as `openssl pkey -pubin` reads it."""
    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    return raw.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Create `path` with `mode` from its first moment; an existing file is an error."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(file, "wb") as stream:
        stream.write(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read ({error.strerror}); name a key's file") from error
