"""Hostile input of every kind, one file for each: `python -m checks.fuzz`."""
