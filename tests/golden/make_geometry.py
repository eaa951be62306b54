"""Makes the compact copy of the peers' vectors of geometric rules: `python tests/golden/make_geometry.py SOURCE`.

SOURCE is the folder with the full recordings. The copy keeps the two small cases, and of their outputs what the tests read.
"""

import sys
from pathlib import Path

import numpy as np

METHODS = ("meamed", "cge", "mda", "smea", "caf", "rlr", "multi_metric", "arc", "flame", "monna", "signguard_sim")
CASES = ("n7_f1_d37", "n12_f3_d200")
INPUTS = ("rounds", "own", "global", "counts", "layers")
OTHERS = ("byzfl_", "byzpy_", "fbl_")  # of other formulas

if __name__ == "__main__":
    arrays = {}
    for method in ("inputs", *METHODS):
        with np.load(Path(sys.argv[1]) / f"{method}.npz") as source:
            for key in source.files:
                case, _, name = key.partition("/")
                kept = name in INPUTS if method == "inputs" else not name.startswith(OTHERS)
                if case.startswith(CASES) and kept:
                    arrays[f"{method}/{key}"] = source[key]
    np.savez_compressed(Path(__file__).parent / "peers" / "geometry.npz", **arrays)
