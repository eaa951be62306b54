"""Makes the compact copy that test_peers_informed.py reads: `python -m tests.golden.make_informed SOURCE`.

SOURCE is the folder with the full recordings of the public implementations. The two smaller cases are kept.
"""

import sys
from pathlib import Path

import numpy as np

METHODS = ("inputs", "fltrust", "alignins", "foolsgold", "fldetector", "weighted_mean", "weighted_geometric_median")
INPUTS = ("rounds", "global", "root", "counts", "layers")
LEFT_OUT = ("fbl_", "hvp", "agg_equal", "rfa_reweighted", "topk_gap", "mz_margin")


def wanted(method: str, key: str) -> bool:
    """Whether the copy keeps this array."""
    name = key.rpartition("/")[2]
    if key.startswith("n25"):
        return False
    return name in INPUTS if method == "inputs" else name == "agg_equal_f64" or not name.startswith(LEFT_OUT)


if __name__ == "__main__":
    kept = {}
    for method in METHODS:
        with np.load(Path(sys.argv[1]) / f"{method}.npz") as source:
            kept |= {f"{method}/{key}": source[key] for key in source.files if wanted(method, key)}
    np.savez_compressed(Path(__file__).parent / "peers" / "informed.npz", **kept)
