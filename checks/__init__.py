"""Checks: what passes or fails, one command for each."""
