"""Benchmarks: what times or tabulates, one command for each table."""
