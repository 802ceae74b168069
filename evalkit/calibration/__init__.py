"""Ground truth for the attribution: models whose causes are wired by hand, and their exact SAEs.

Read in this order: `wiring` (what causes each model's failure), `compiling` (a wiring as a real Llama and
its SAEs), `prompts` (the samples and their twins), `truth` (every exact effect by full forwards),
`pairs` (causes that stand in for each other), `measuring` (the audit's own pipeline against the truth),
`calibrating` (all variants, the nulls, and what is expected of them).
"""

from __future__ import annotations

from evalkit.calibration.calibrating import run_calibration
from evalkit.calibration.figures import Calibration

__all__ = ["Calibration", "run_calibration"]
