"""Checks: what passes or fails, one command each."""
