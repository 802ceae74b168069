"""How samples are run: one file per probe kind, all meeting `pairs.Pair` for the margin."""
