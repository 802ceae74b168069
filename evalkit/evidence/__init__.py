"""A run as a folder that a stranger can check: packed, digested, signed, exported, computed again. No torch.

    packing.py   a run → a pack                    checks.py    what a check says, and the levels
    keys.py      ed25519 key files                 sums.py      level 1: SHA256SUMS
    envelope.py  in-toto statement, DSSE           recount.py   level 2: results.json from the records
    bom.py, oscal.py, exports.py  other formats    redraw.py    level 3: report and exports again
    redaction.py withheld items                    pades.py     a signature inside a copy of the PDF

`verify.py` runs the levels; those that need weights are in `rerun.py`, a floor above.
"""
