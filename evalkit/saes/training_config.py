"""What is trained and how: every value goes into the SAE's card."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from evalkit.records import Record


class SaeSpec(Record):
    """One SAE to train."""

    hook: str
    """Where it reads, `layers.16`."""
    d_sae: Annotated[int, Field(ge=2)] = 9216
    """Number of latents."""
    k: Annotated[int, Field(ge=1)] = 32
    """Latents active per position."""
    seed: int = 0
    """Seed of the initial directions."""
    architecture: Literal["topk", "batchtopk", "matryoshka"] = "topk"
    """`topk`: k latents at every position. `batchtopk`: k on average over a batch, one threshold afterwards.
    `matryoshka`: the same, and the first latents alone must reconstruct as well (`prefixes`)."""

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Numbers of first latents that must reconstruct the stream by themselves; all of them at the end.

        Halved four times for `matryoshka`: chosen after Bussmann et al. 2025, "Learning multi-level
        features with Matryoshka SAEs", which doubles nested widths.
        """
        halvings = range(4, 0, -1) if self.architecture == "matryoshka" else ()
        return tuple(dict.fromkeys(max(self.d_sae >> n, 1) for n in (*halvings, 0)))

    @property
    def name(self) -> str:
        """Unique among the SAEs of one run."""
        return f"{self.hook}.seed{self.seed}"


class TrainingConfig(Record):
    """How SAEs are trained; every value is part of the run's record."""

    n_tokens: Annotated[int, Field(ge=1)]
    """Positions to train on; the learning rate reaches zero there."""
    batch: Annotated[int, Field(ge=1)] = 1024
    """Positions per step; a block is divided evenly into steps of at least this size."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of Adam."""
    warmup_tokens: Annotated[int, Field(ge=0)] = 50_000
    """The learning rate rises linearly over these."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of `n_tokens` at the end over which the learning rate falls linearly to zero."""
    aux_coefficient: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of AuxK (Gao et al. 2024, A.2)."""
    k_aux: Annotated[int, Field(ge=1)] = 256
    """Dead latents that reconstruct the residual; about d_model / 2 (Gao et al. 2024, A.2)."""
    aux_every: Annotated[int, Field(ge=1)] = 4
    """AuxK uses every n-th position of a batch: chosen for speed."""
    dead_after_tokens: Annotated[int, Field(ge=1)] = 100_000
    """A latent that has not fired for this long is dead; chosen as about 3 % of a short run."""
    norm_factor: Annotated[float, Field(gt=0)] = 6.0
    """Positions above this multiple of the median norm are attention sinks and are dropped."""
    encoder_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision in which the k largest latents are looked for."""
    checkpoint_every_tokens: Annotated[int, Field(ge=1)] = 400_000
    """How often the state is written."""
    seed: int = 0
    """Seed of the order of positions."""


def learning_rate(config: TrainingConfig, n_tokens: int) -> float:
    """Linear warm-up, constant, then linear to zero at `config.n_tokens`."""
    rise = min(1.0, (n_tokens + config.batch) / max(config.warmup_tokens, 1))
    decay_tokens = config.decay_share * config.n_tokens
    fall = min(1.0, (config.n_tokens - n_tokens) / decay_tokens) if decay_tokens else 1.0
    return config.lr * min(rise, max(fall, 0.0))
