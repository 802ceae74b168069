"""What a suite's items come to before anything runs: how many count, how they were judged, how they group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from evalkit.records import Sample
from evalkit.suite_files import LoadedSuite


class ProbeCounts(NamedTuple):
    """The samples of one probe in the suite's first context."""

    probe: str
    n_counted: int
    """Valid, neither control nor twin: what a rate's n can reach."""
    n_groups: int
    n_invalid: int
    n_controls: int
    """Twins included."""
    n_triaged: int
    """Of all of these: judged for validity, by the probe's `triage` or the sample's own."""


def counts(loaded: LoadedSuite, samples: Sequence[Sample]) -> tuple[ProbeCounts, ...]:
    """Per probe; repeats are samples, other contexts are left out."""
    return tuple(
        _count(
            probe.id, probe.triage is not None, [s for s in _first(loaded, samples) if s.probe == probe.id]
        )
        for probe in loaded.suite.probes
    )


def group_sizes(loaded: LoadedSuite, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Failure mode → counted samples in each of its groups, in the suite's order."""
    sizes: dict[str, dict[str, int]] = {p.failure_mode: {} for p in loaded.suite.probes}
    for sample in _first(loaded, samples):
        if sample.valid and not sample.control:
            groups = sizes[sample.failure_mode]
            groups[sample.group] = groups.get(sample.group, 0) + 1
    return {mode: list(groups.values()) for mode, groups in sizes.items()}


def _first(loaded: LoadedSuite, samples: Sequence[Sample]) -> list[Sample]:
    """Of the first context, with neither its other rungs nor its format controls."""
    return [s for s in samples if s.context == loaded.suite.contexts[0] and not s.format_control]


def _count(name: str, triaged: bool, mine: Sequence[Sample]) -> ProbeCounts:
    own = [s for s in mine if s.valid and not s.control]
    return ProbeCounts(
        probe=name,
        n_counted=len(own),
        n_groups=len({s.group for s in own}),
        n_invalid=sum(not s.valid and not s.control for s in mine),
        n_controls=sum(s.control for s in mine),
        n_triaged=sum(triaged or "triage" in s.fields for s in mine),
    )
