"""Starts sweeps: `python -m launch.sweep --config=configs/sweeps/figure1.py:digits --workdir=DIR`."""
