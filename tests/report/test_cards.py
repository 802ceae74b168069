"""The SAE section: each figure beside its floor, and "not measured" where it was not."""

from __future__ import annotations

from evalkit.records import RunQuality, SaeCard, SaeQuality, SaeRecord, SparseProbe
from evalkit.report.cards import sae_report


def quality(explained: float, **more: float) -> SaeQuality:
    return SaeQuality(
        explained_variance=explained, l0=8.0, ce_recovered_zero=None, ce_recovered_mean=None,
        dead_share=0.25, **more,
    )  # fmt: skip


def probe(concept: str, five: float) -> SparseProbe:
    return SparseProbe(
        concept=concept, n_train=10, n_test=10, positive_share=0.5,
        sae={"1": 0.5, "2": 0.6, "5": five}, random={"1": 0.5, "2": 0.5, "5": 0.55}, dense=0.9,
    )  # fmt: skip


def rows(**changes: object) -> dict[str, str]:
    card = SaeCard(
        hook="layers.1", architecture="topk", d_model=32, d_sae=64, quality=quality(0.8), **changes  # type: ignore[arg-type]
    )  # fmt: skip
    record = SaeRecord(ref="mine", hook="layers.1", architecture="topk", d_sae=64, sha256="a" * 64, card=card)
    report = sae_report((record,))
    assert report is not None
    return {row[0]: row[1] for row in report.cards[0].rows}


def test_what_was_not_measured_says_so() -> None:
    found = rows()
    for name in (
        "KL from the clean prediction, nats per token",
        "Dense features (at over 10 % of tokens), share",
        "Explained variance, a run's failures",
        "Explained variance, a run's passes",
        "Error share in that run, all its SAEs",
        "Sparse probing, 5 features, mean AUROC",
        "Dense probe, mean AUROC",
        "Seed stability",
    ):
        assert found[name] == "not measured", name


def test_each_figure_stands_beside_its_floor() -> None:
    run = RunQuality(
        run="my-run", on_failures=quality(0.61), on_passes=None, random_on_failures=quality(0.2),
        random_on_passes=None, error_share=0.345, n_attributed=12,
    )  # fmt: skip
    found = rows(
        random_floor=quality(0.3, kl_nats=2.5, dense_share=0.5),
        on_run=run,
        probing=(probe("a", 0.7), probe("b", 0.8)),
        seed_stability=0.42,
    )
    assert found["Explained variance"] == "0.800 (0.300)"
    assert found["Explained variance, a run's failures"] == "0.610 (0.200)"
    assert found["Explained variance, a run's passes"] == "not measured"
    assert found["Error share in that run, all its SAEs"] == "34.5\u00a0%, n = 12"
    assert found["Sparse probing, 5 features, mean AUROC"] == "0.750 (0.550)"
    assert found["Dense probe, mean AUROC"] == "0.900"
    assert found["Seed stability"] == "42.0\u00a0%"
