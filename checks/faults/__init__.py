"""Faults made on real runs, and what they cost: `python -m checks.faults`."""
