"""What attribution asks of a model, whatever it reads: text, sound, images.

A modality is an adapter that satisfies `StreamModel` and a unit of position (a token, a 20 ms frame). The
algorithm is the same for all: read once and keep streams, change a stream at some positions, recompute
what lies above, read the log-probabilities of given answers. `models.text` and `models.audio` are two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxtyping import Bool, Float
from torch import Tensor, nn

from evalkit.records import ModelRecord, Sample

Edit = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]
"""Takes a stream (positions from `start` on) and returns the changed one."""

NEURONS = "neurons"
"""`neurons.N`: the hook before the projection that ends block N's MLP, which adds to `layers.N`."""


def is_neurons(hook: str) -> bool:
    """Whether a hook reads MLP neurons instead of the residual stream."""
    return hook.startswith(f"{NEURONS}.")


def stream_of(hook: str) -> str:
    """The residual stream that a hook's neurons write; a stream's own hook."""
    return hook.replace(f"{NEURONS}.", "layers.", 1) if is_neurons(hook) else hook


PADDING = "padding"
"""Role of positions that the model computes and the sample does not fill: never decomposed."""


class Prompt(Protocol):
    """One sample as the model reads it; position by position."""

    @property
    def ids(self) -> Any:
        """What `read` takes: a sequence with one comparable item per position."""

    @property
    def text(self) -> str:
        """For the record: the prompt in words."""

    @property
    def tokens(self) -> Sequence[str]:
        """A name of each position for the reader."""

    @property
    def roles(self) -> Sequence[str]:
        """What each position is part of."""

    @property
    def segments(self) -> Sequence[int] | None:
        """Per position the segment that a node covers, ascending; None: every position is its own."""


class StreamRun(Protocol):
    """The state after reading a batch."""

    @property
    def logits(self) -> Float[Tensor, "batch vocab"]:
        """For the first token of an answer."""

    @property
    def mask(self) -> Bool[Tensor, "batch pos"]:
        """False: padding."""

    @property
    def streams(self) -> dict[str, Float[Tensor, "batch pos d_model"]]:
        """Per hook that was kept."""

    def offset(self, row: int) -> int:
        """Position of the stream at which the prompt of `row` begins."""

    def detached(self) -> StreamRun:
        """The same values without a graph."""


class StreamModel(Protocol):
    """A model that can be read, changed at a hook, and read again."""

    record: ModelRecord
    module: nn.Module
    tokenizer: Any
    n_layers: int
    d_model: int
    batch_rows: int
    """Rows that `rerun` is given at once."""

    def layer_of(self, hook: str) -> int:
        """Where the hook lies: a lower one is computed before a higher one."""

    def neuron_rows(self, hook: str) -> Float[Tensor, "neuron d_model"] | None:
        """What each MLP neuron of the block at `hook` adds to the stream; None: not one projection."""

    def encode(self, sample: Sample) -> Any:
        """The sample as this model's prompt."""

    def encode_answer(self, text: str, after: Any = None) -> tuple[int, ...]:
        """Tokens of an answer, as they follow the prompt `after` if it is given."""

    def read(self, prompts: Sequence[Any], hooks: Sequence[str] = (), *, grad: bool = False) -> Any:
        """Run prompts (their `ids`) once, keeping the streams at `hooks`."""

    def rerun(
        self,
        run: Any,
        rows: Sequence[int],
        hook: str,
        start: int,
        edits: Mapping[str, Edit],
        keep: Sequence[str] = (),
        until: str | None = None,
    ) -> Any:
        """Recompute what lies above `hook` and from position `start` on, with `edits` applied.

        Nothing above `until` runs, where it is given.
        """

    def log_p(self, run: Any, answers: Sequence[Sequence[tuple[int, ...]]]) -> Float[Tensor, "batch answer"]:
        """Summed log-probability of each answer's tokens after each row's prompt, in nats."""
