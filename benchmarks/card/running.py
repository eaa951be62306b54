"""Runs the items of a part: prepares them together, measures them one after another, and writes after each."""

import concurrent.futures
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.card.items import Facts, Item, Prepared
from benchmarks.card.results import Results

_PREPARING = 0.7  # of the time, after which no further item is begun to be prepared


def run(items: Sequence[Item], results: Results, *, minutes: float, log: Callable[[str], None]) -> tuple[int, int]:
    """Runs the items that are not done yet.

    All are prepared in as many threads as there are cores, and nothing is measured before. What needs least memory is
    measured first, since a device tells the peak since its start only. An item that fails is entered with its error; the
    others go on.

    Args:
      items: of the part.
      results: where they are entered.
      minutes: after which nothing more is begun, so that a run that may not last longer ends by itself.
      log: told of each item in a line.

    Returns:
      How many failed, and how many were not reached.
    """
    until = time.perf_counter() + 60 * minutes
    until_prepared = until - (1 - _PREPARING) * 60 * minutes
    failed = 0

    def enter(item: Item, facts: Facts, future: concurrent.futures.Future[Any]) -> bool:
        """Enters facts with the error, if there is one, of any kind: on a new card the other items must go on."""
        nonlocal failed
        if (error := future.exception()) is not None:
            failed += 1
            facts = {**facts, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}
        results.add(item.name, facts)
        log(f"{item.name}: {_told(facts)}")
        return error is None

    ready: list[tuple[Item, Prepared]] = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(item.prepare): item for item in items if not results.is_done(item.name)}
        waiting = set(futures)
        while waiting:
            left = until_prepared - time.perf_counter()
            if left <= 0:
                waiting = {future for future in waiting if not future.cancel()}  # those that run end first
            ended, waiting = concurrent.futures.wait(
                waiting, None if left <= 0 else left, concurrent.futures.FIRST_COMPLETED
            )
            for future in ended:
                item, prepared = futures[future], None if future.exception() else future.result()
                whole = prepared is not None and prepared.measure is None
                facts = {} if prepared is None else prepared.facts
                if enter(item, {**facts, "done": True} if whole else facts, future) and not whole:
                    ready.append((item, prepared))
    ready.sort(key=lambda one: one[1].facts.get("needed_bytes", 0), reverse=True)
    with concurrent.futures.ThreadPoolExecutor(1) as alone:
        while ready and time.perf_counter() < until:
            item, prepared = ready.pop()
            assert prepared.measure is not None
            measured = alone.submit(prepared.measure)
            found = {} if measured.exception() else {**measured.result(), "done": True}
            enter(item, {**prepared.facts, **found}, measured)
    return failed, sum(not results.is_done(item.name) for item in items) - failed


def _told(facts: Facts) -> str:
    """What an item is said to have brought."""
    if "error" in facts:
        return facts["error"]
    if "seconds" in facts:
        return f"{1000 * facts['seconds']:.3f} ms"
    return "done" if facts.get("done") else f"compiled in {facts.get('compile_seconds', 0):.1f} s"
