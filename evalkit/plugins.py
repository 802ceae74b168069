"""Every verb a third party may supply, and the registry that finds it.

A distribution offers plugins by entry points in the groups `evalkit.models`, `.probes`, `.scorers`,
`.saes` and `.reports`; evalkit's own are offered the same way. Listing names imports nothing: a plugin is
loaded when a suite names it, and its name, distribution and version go into the run's record.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from evalkit.errors import PluginError, did_you_mean
from evalkit.records import ModelRecord, Response, Sample, Score

Group = Literal["models", "probes", "scorers", "saes", "reports"]

DISTRIBUTION = "evalkit-audit"


class Scorer(Protocol):
    """Judges one response; made from a `ScorerSpec`."""

    def score(self, sample: Sample, response: Response) -> Score:
        """The outcome of `response` to `sample`, with its margin in nats if the scorer knows one."""


class ModelAdapter(Protocol):
    """A model that is ready to run; made by `open(resolved, device=, dtype=)`."""

    record: ModelRecord
    """The model, named as what it is."""

    def encode(self, sample: Sample) -> Any:
        """The sample as the model reads it: a prompt of tokens, frames or patches."""


class Probe(Protocol):
    """How one kind of probe runs; made from its `ProbeSpec` and `Scorer`.

    `model`, `prompts` and the states are the adapter's own types; a probe states which it needs.
    """

    scorer: Scorer
    """Judges its responses."""

    def check(self, model: Any, samples: Sequence[Sample]) -> None:
        """Raise `SuiteError` before the first forward for what would go wrong later."""

    def respond(
        self, model: Any, samples: Sequence[Sample], prompts: Sequence[Any], seed: int
    ) -> list[Response]:
        """One response per sample, in order; a pure function of its arguments."""

    def pair(self, model: Any, sample: Sample, response: Response | None, twin: Response | None) -> Any:
        """The failing and the safe continuation whose log-probabilities make the margin, or None."""

    def rescore(
        self, model: Any, run: Any, samples: Sequence[Sample], prompts: Sequence[Any], seed: int
    ) -> list[Score]:
        """Decode and score again from a changed state."""


class Offer(NamedTuple):
    """A plugin that some distribution offers; not loaded yet."""

    group: Group
    name: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint

    @property
    def origin(self) -> str:
        """`distribution version`, for the run's record."""
        return f"{self.distribution} {self.version}"


def names(group: Group) -> tuple[str, ...]:
    """Names on offer in `group`, sorted."""
    return tuple(sorted({offer.name for offer in _offers(group)}))


def find(group: Group, name: str) -> Offer:
    """The one offer of `name`.

    Raises:
        PluginError: nobody offers it, or two distributions do.
    """
    offers = _offers(group)
    found = [offer for offer in offers if offer.name == name]
    if not found:
        known = {offer.name for offer in offers}
        raise PluginError(f"{group}: no plugin '{name}'{did_you_mean(name, known) or '; none is installed'}")
    if len(found) > 1:
        origins = " and ".join(sorted(offer.origin for offer in found))
        raise PluginError(f"{group}: '{name}' is offered by {origins}; uninstall one of them")
    return found[0]


def load(group: Group, name: str) -> Any:
    """The object that the one offer of `name` points to.

    Raises:
        PluginError: nobody or more than one offers it, or importing it fails.
    """
    offer = find(group, name)
    try:
        return offer.entry_point.load()
    except (ImportError, AttributeError) as error:
        target = offer.entry_point.value
        raise PluginError(
            f"{group}: '{name}' of {offer.origin} cannot be loaded from {target}: {_one_line(error)}"
        ) from error


def _offers(group: Group) -> list[Offer]:
    found = [
        Offer(group, point.name, point.dist.name, point.dist.version, point)
        for point in metadata.entry_points(group=f"evalkit.{group}")
        if point.dist is not None
    ]
    if not any(offer.distribution == DISTRIBUTION for offer in found):
        found += _checkout_offers(group)
    return found


def _checkout_offers(group: Group) -> list[Offer]:
    """evalkit's own entry points when it runs from a checkout that was never installed."""
    path = Path(__file__).parent.parent / "pyproject.toml"
    if not path.is_file():
        return []
    project = tomllib.loads(path.read_text("utf-8")).get("project", {})
    if project.get("name") != DISTRIBUTION:
        return []
    points: dict[str, str] = project.get("entry-points", {}).get(f"evalkit.{group}", {})
    return [
        Offer(
            group,
            name,
            DISTRIBUTION,
            project["version"],
            metadata.EntryPoint(name, value, f"evalkit.{group}"),
        )
        for name, value in points.items()
    ]


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error))
