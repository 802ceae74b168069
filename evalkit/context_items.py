"""The items of a failure mode in each framing, and whether they failed there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from evalkit.framings import framing_name
from evalkit.records import Sample

ItemKey = tuple[str, str, int]
"""Probe, the item's id as written, repeat."""


class Asked(NamedTuple):
    """One item in one framing."""

    id: str
    group: str
    failed: bool | None
    """None: unscored."""


Items = dict[ItemKey, dict[str, Asked]]
"""Item → framing → how it went."""


def item_key(sample: Sample) -> ItemKey:
    """What the framings of one item share."""
    return sample.probe, str(sample.fields.get("id", sample.id)), sample.repeat


def name_of(sample: Sample) -> str:
    """The sample's framing."""
    return framing_name(sample.context, sample.rung, sample.format_control)


def is_item(sample: Sample, twins: frozenset[str]) -> bool:
    """Whether it is asked for its own sake: valid, no twin, and not written as a control."""
    return sample.valid and sample.id not in twins and sample.fields.get("control") is not True


def by_framing(samples: Iterable[Sample], mode: str, failed: Mapping[str, bool]) -> Items:
    """Every item of a failure mode; `failed` holds the scored ones."""
    listed = list(samples)
    twins = frozenset(s.counterfactual for s in listed if s.counterfactual)
    items: Items = {}
    for s in listed:
        if s.failure_mode == mode and is_item(s, twins):
            items.setdefault(item_key(s), {})[name_of(s)] = Asked(s.id, s.group, failed.get(s.id))
    return items
