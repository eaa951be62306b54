"""Makes tests/golden/peers/searches.npz from the peers' vectors: `python tests/golden/make_searches.py SOURCE`.

The copy has the two smaller cases, and of each method the arrays that tests/golden/test_peers_searches.py reads.
"""

import re
import sys
from pathlib import Path

import numpy as np

CASES = ("n7_f1_d37", "n12_f3_d200")
READ = {
    "fang_krum": r"official_(row|lam)_(full|partial)|official_krum_before|ndss_lam_bound",
    "fang_trim": r"(official|fbl)_row_(full|partial)",
    "min_max": r"row_(unit_vec|sign|std)",
    "min_sum": r"(flpoison_)?row_(unit_vec|sign|std)",
    "tailored_median": r"row_(unit_vec|sign|std)",
    "tailored_multikrum": r"row(20)?_(unit_vec|sign|std)",
    "tailored_bulyan": r"row_(unit_vec|sign|std)",
    "optimal_alie": r"(trmean|median|multikrum|nnm_trmean)/(row|tau)",
    "optimal_ipm": r"(trmean|median|multikrum|nnm_trmean)/(row|tau)",
}


def read(folder: Path, cases: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """`METHOD/CASE/ARRAY` of what the tests read, and `inputs/CASE/{own,benign}`; of all cases if None."""
    found = {}
    with np.load(folder / "inputs.npz") as inputs:
        for key in inputs.files:
            case, _, array = key.partition("/")
            if array == "own" and (cases is None or case in cases):
                found[f"inputs/{case}/own"] = inputs[key]
                found[f"inputs/{case}/benign"] = inputs[f"{case}/rounds"][0][len(inputs[key]) :]
    for method, pattern in READ.items():
        with np.load(folder / f"{method}.npz") as recorded:
            for key in recorded.files:
                case, _, array = key.partition("/")
                if f"inputs/{case}/own" in found and re.fullmatch(pattern, array):
                    found[f"{method}/{key}"] = recorded[key]
    return found


if __name__ == "__main__":
    copy = Path(__file__).parent / "peers" / "searches.npz"
    copy.parent.mkdir(exist_ok=True)
    np.savez_compressed(copy, **read(Path(sys.argv[1]), CASES))
