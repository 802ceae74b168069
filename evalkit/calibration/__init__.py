"""Ground truth for the attribution: models whose causes are wired by hand, and their exact SAEs.

Read in this order: `wiring` (what causes each model's failure), `compiling` (a wiring as a real Llama and
its SAEs), `prompts` (the samples and their twins), `truth` (every exact effect by full forwards),
`edge_truth` (every exact edge), `pairs` (causes that stand in for each other), `measuring` (the audit's own
pipeline against the truth), `confirming` (the grade of a mode circuit), `nulls` (grades where there is
nothing to find), `coverage` (printed intervals against known rates), `calibrating` (all of it, and what is
expected of it). The records are in `evalkit.calibrated`.
"""

from __future__ import annotations

from evalkit.calibrated import Calibration
from evalkit.calibration.calibrating import run_calibration

__all__ = ["Calibration", "run_calibration"]
