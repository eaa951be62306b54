"""Benchmarks of rules, for `lasa-jax benchmark`."""
