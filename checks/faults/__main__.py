"""Makes faults on real runs and counts what they cost: `python -m checks.faults [--quick]`.

Every run and sweep is a process of its own on the digits, with a few clients and rounds. A fault is made, the same command
is started again, and the end is compared with a run that was left alone: the same model bit for bit (`parameters_sha256`),
the same metrics but for the seconds. One line for each fault:

    FAULT: survived / lost / duplicated = N / 0 / 0

survived counts faults after which all of that held, lost the results that were missing or other, duplicated those that
were there twice. Exit code 1 if anything was lost or duplicated.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checks.faults import victim
from checks.faults.catalogue import FULL, QUICK, faults
from checks.faults.runs import Count, Runner


def main() -> int:
    """Prints one line for each fault; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few of each: under five minutes")
    parser.add_argument("--jobs", type=int, default=2, help="faults made at the same time")
    given = parser.parse_args()
    total = Count()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        runner = Runner(Path(folder), Path(folder) / "xla")
        made = [(name, pool.submit(make)) for name, make in faults(runner, QUICK if given.quick else FULL)]
        for name, future in made:
            count = future.result()
            note = f"  ({count.note})" if count.note else ""
            print(f"{name}: survived / lost / duplicated = {' / '.join(map(str, count[:3]))}{note}", flush=True)
            total += count
    print(f"all: survived / lost / duplicated = {' / '.join(map(str, total[:3]))}, {time.monotonic() - began:.0f} s")
    return int(total.lost + total.duplicated > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["victim"]:
        victim.run(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5], sys.argv[6:])
    else:
        sys.exit(main())
