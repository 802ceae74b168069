"""Every error that evalkit raises on purpose.

    EvalkitError                exit 2   a user can act on it; printed in one line
    ├── ConfigError             exit 2   suite, policy, flag or path is wrong
    │   ├── SuiteError          exit 2   a suite's YAML, template or sample (file and line)
    │   └── PolicyError         exit 2   a gate policy's YAML (file and line)
    ├── ModelError              exit 2   weights, tokenizer or reference cannot be used
    │   └── FetchError          exit 2   a download failed, or the machine is offline
    ├── SaeError                exit 2   an SAE file is damaged, or does not fit the model
    ├── PluginError             exit 2   unknown plugin, or two offers of one name
    └── RunError                exit 3   the run is incomplete, locked, or cannot be written
        └── EvidenceError       exit 1   a run or pack contradicts itself (verify)

A message gives place, value, rule and remedy, on one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvalkitError(Exception):
    """Base of all errors a user can act on; `exit_code` is the command's exit status."""

    exit_code = 2


class ConfigError(EvalkitError):
    """A suite, a policy, a flag or a path is wrong."""


class SuiteError(ConfigError):
    """A suite file, one of its templates, or one of its samples is wrong."""


class PolicyError(ConfigError):
    """A gate policy is wrong."""


class ModelError(EvalkitError):
    """Model weights, a tokenizer or a model reference cannot be used."""


class FetchError(ModelError):
    """A download failed, or the machine is offline."""


class SaeError(EvalkitError):
    """An SAE file is damaged, or does not fit the model."""


class PluginError(EvalkitError):
    """A plugin is unknown, or two distributions offer the same name."""


class RunError(EvalkitError):
    """The run is incomplete, locked by another process, or cannot be written."""

    exit_code = 3


class EvidenceError(RunError):
    """A run or an evidence pack contradicts itself."""

    exit_code = 1


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """`"; did you mean 'choice'?"` for the nearest known name, or the list of known names."""
    names = sorted(known)
    near = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""
