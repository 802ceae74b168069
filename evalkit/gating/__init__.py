"""What a gate's rules measure, one family per file, and what a pipeline reads of a verdict. No torch."""
