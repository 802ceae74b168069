"""evalkit: audits of open-weight models whose every failure is attributed to SAE features and tested.

The map, in reading order:

    runner.py     the main path on one screen: load → respond → score → attribute → intervene → store
    records.py    every noun, in the order in which a run meets them
    plugins.py    every verb that a third party may supply
    cli.py        the `evalkit` command

`audit` needs torch and is imported when it is first used; everything else here does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evalkit.errors import (
    ConfigError,
    EvalkitError,
    EvidenceError,
    ModelError,
    RunError,
    SaeError,
    SuiteError,
)
from evalkit.gate import judge
from evalkit.records import GateReport, Plan, Policy, Results, Suite
from evalkit.results import tally
from evalkit.store import read_results, read_run
from evalkit.suites import load_policy, load_suite
from evalkit.verify import verify_run

if TYPE_CHECKING:
    from evalkit.planning import Options
    from evalkit.runner import audit

__all__ = [
    "ConfigError",
    "EvalkitError",
    "EvidenceError",
    "GateReport",
    "ModelError",
    "Options",
    "Plan",
    "Policy",
    "Results",
    "RunError",
    "SaeError",
    "Suite",
    "SuiteError",
    "audit",
    "judge",
    "load_policy",
    "load_suite",
    "read_results",
    "read_run",
    "tally",
    "verify_run",
]


def __getattr__(name: str) -> Any:
    if name == "audit":
        from evalkit.runner import audit

        return audit
    if name == "Options":
        from evalkit.planning import Options

        return Options
    raise AttributeError(f"module 'evalkit' has no attribute '{name}'")
