"""What compilers for accelerators make of the programs here, on a machine that has none: `python -m checks.accelerator`."""
