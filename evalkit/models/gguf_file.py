"""An open GGUF file: its metadata by key, its tensors, and the errors a reader of it raises.

Source: the GGUF specification (ggml/docs/gguf.md).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gguf import GGUFReader

from evalkit.errors import ModelError

T = TypeVar("T")
_UNQUANTISED = ("F32", "F16", "BF16", "F64")


class GgufHeader(NamedTuple):
    """What a GGUF file says of itself, and its dominant quantisation as read from the tensors."""

    name: str | None
    quantisation: str | None
    """Quantisation of most weights, such as `Q4_1`; None if unquantised."""
    licence: str | None
    upstream: str | None
    context_length: int


class GgufFile:
    """An open GGUF file; metadata by key, absent keys named in the error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.reader = GGUFReader(path)
            self.fields: dict[str, Any] = {key: f.contents() for key, f in self.reader.fields.items()}
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file; give the path of a .gguf file") from None
        except (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError) as error:
            raise self.damaged(f"not a complete GGUF file ({str(error)[:120]})") from error

    def need(self, key: str, kind: type[T]) -> T:
        """The value under `key`.

        Raises:
            ModelError: The key is absent or of another type.
        """
        value = self.fields.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "missing" if value is None else f"{str(value)[:40]!r}, not {kind.__name__}"
            raise self._error(f"metadata '{key}' is {found}; the converter needs it, take another file")
        return value

    def optional(self, key: str, kind: type[T], default: T) -> T:
        """The value under `key`, or `default` if it is absent; ModelError if it is of another type."""
        return self.need(key, kind) if key in self.fields else default

    def need_list(self, key: str, kind: type[T]) -> list[T]:
        """The array under `key`, every item of type `kind`; ModelError otherwise."""
        values = self.need(key, list)
        if not all(isinstance(value, kind) for value in values):
            raise self.damaged(f"metadata '{key}' holds items that are not {kind.__name__}")
        return values

    def refuse(self, what: str, supported: str) -> ModelError:
        """The error for something this converter would have to guess."""
        return self._error(f"{what}; supported: {supported}; convert it to safetensors elsewhere")

    def damaged(self, what: str) -> ModelError:
        """The error for a file that contradicts itself."""
        return self._error(f"{what}; fetch it again and compare its SHA-256")

    def _error(self, text: str) -> ModelError:
        """Names inside a damaged file may hold control characters; a message stays on one line."""
        printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        return ModelError(f"{self.path}: {printable[:300]}")


def read_header(file: GgufFile) -> GgufHeader:
    """What the file says of itself."""
    arch = file.fields.get("general.architecture")
    text = {key: value for key, value in file.fields.items() if isinstance(value, str)}
    context = file.fields.get(f"{arch}.context_length")
    return GgufHeader(
        name=text.get("general.name"),
        quantisation=_dominant_quantisation(file),
        licence=text.get("general.license"),
        upstream=text.get("general.base_model.0.repo_url") or text.get("general.source.url"),
        context_length=context if isinstance(context, int) else 0,
    )


def _dominant_quantisation(file: GgufFile) -> str | None:
    count: Counter[str] = Counter()
    for tensor in file.reader.tensors:
        count[tensor.tensor_type.name] += int(tensor.n_elements)
    kind = count.most_common(1)[0][0] if count else "F32"
    return None if kind in _UNQUANTISED else kind
