"""From failures to SAE features: shortlist by gradients, certify by exact interventions.

Read in this order: `cases` (what is attributed, and against which baseline), `capture` (one forward,
two backwards), `shortlist` (estimates and the error term), `certify` (exact measurements), `floors`
(the same selection on SAEs that know nothing), `attribute` (all of it for one batch of failures).
"""
