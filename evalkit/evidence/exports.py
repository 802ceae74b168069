"""What the formats share: UUIDs that follow from digests, and JSON that is equal for equal data."""

from __future__ import annotations

import json
from uuid import UUID, uuid5

from pydantic import JsonValue


def seed_of(results_sha256: str) -> UUID:
    """The name space of a pack's UUIDs: the first half of the digest of results.json."""
    return UUID(bytes=bytes.fromhex(results_sha256)[:16], version=5)


def uuid_of(seed: UUID, name: str) -> str:
    """The UUID of one thing in a pack (RFC 9562, version 5)."""
    return str(uuid5(seed, name))


def json_bytes(value: JsonValue) -> bytes:
    """Indented UTF-8 JSON with a final newline; keys in the order given."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
