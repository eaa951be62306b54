"""Makes the compact copy of the golden vectors that lies beside this file: `python tests/golden/make.py SOURCE`.

SOURCE is the folder with the full recordings. The copy keeps what the tests read, without the variants whose rows are
random noise, so that each file stays under 1 MB.
"""

import re
import sys
from pathlib import Path

import numpy as np

LASA = {"params", "sparsity", "used", "clip_norm", "update_norm", "threshold", "kept", "norm", "pur", "keep", "agg"}
LASA |= {"agg_at", "status", "alt_agg_n_left"}
WHOLE = ("a5_n8_f1_attacks", "a5_n8_f2_attacks", "a5_n8_f3_attacks", "a6_n12_f3_zeros")  # every attack
FOR_RULES = "a2_n25_f6"  # every rule but LASA and SparseFed, under two attacks
FOR_LASA = ("a1_n20_f4", "a4_n25_f6_buffers")
DROPPED = ("gauss/", "noise/", "scaled10/", "min", "trmean")


def wanted(name: str, key: str) -> bool:
    """Whether the copy keeps this array."""
    if key == "honest" or name in WHOLE:
        return True
    if name == FOR_RULES:
        return key.startswith(("minmax/", "signflip/")) and "/lasa/" not in key
    if key.startswith("sparsefed/"):
        return name == "a4_n25_f6_buffers"
    if key.startswith(DROPPED):
        return False
    if re.search(r"/rows(_at|_of)?$", key) or re.match(r"(clip/|(lie|byzmean\w*)/attack/)", key) or "/fedavg/" in key:
        return True
    return "/lasa/" in key and key.rsplit("/", 1)[1] in LASA


if __name__ == "__main__":
    for name in (*WHOLE, FOR_RULES, *FOR_LASA):
        with np.load(Path(sys.argv[1]) / f"{name}.npz") as source:
            arrays = {key: source[key] for key in source.files if wanted(name, key)}
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)
