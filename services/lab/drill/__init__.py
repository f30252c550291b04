"""Drills: runs under faults drawn at random, and the check that nothing of them is lost and nothing is left behind."""
