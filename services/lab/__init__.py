"""The laboratory: faults drawn at random, and runs on clusters that are not at hand. Used by its own commands alone."""
