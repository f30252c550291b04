"""The report of a run: one page with its numbers, curves, alignment and timeline."""
