"""LEAF's JSON, plays, prepared sets, and the cache of decoded arrays."""

import gzip
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from checks.fuzz.failures import Failures, contents, outcome
from checks.fuzz.mutations import mutate_bytes, mutate_json
from lasa_jax import data
from lasa_jax.errors import InputError


def write_sources(folder: Path) -> None:
    """One small source of each kind."""
    rng = np.random.default_rng(0)

    def user(count: int) -> dict[str, Any]:
        return {"x": np.round(rng.random((count, 784)), 2).tolist(), "y": rng.integers(0, 62, count).tolist()}

    for part, users in (("train", {"w1": user(3), "w2": user(2)}), ("test", {"w1": user(1)})):
        text = json.dumps(
            {"users": list(users), "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}
        )
        (folder / "leaf" / part).mkdir(parents=True)
        (folder / "leaf" / part / "all.json").write_text(text)
    (folder / "plays").mkdir()
    speeches = "".join(f"\nKING.\nSpeech {i}, and so\non.\n\nQUEEN.\nNo {i}.\n" for i in range(5))
    (folder / "plays" / "all.txt.gz").write_bytes(gzip.compress(f"== A Play ==\n{speeches}".encode()))


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """A third raw sources, a third prepared sets, a third entries of the cache."""
    failures = Failures()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sources(folder / "good")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        sources = {"femnist": folder / "good" / "leaf", "shakespeare": folder / "good" / "plays" / "all.txt.gz"}
        good = {
            name: data.load(name, data_dir=str(folder / "prepared"), source=str(path)) for name, path in sources.items()
        }
        for index in range(count):
            chance = random.Random(seed * 10**9 + index)
            name = chance.choice(sorted(sources))
            work = folder / "work"
            shutil.copytree(folder / ("good" if index % 3 == 0 else "prepared"), work / "in")
            out = work / "out" if index % 3 == 0 else work / "in"
            source = None
            if index % 3 == 0:
                source = str(work / "in" / sources[name].relative_to(folder / "good"))
                target = chance.choice([p for p in (Path(source), *Path(source).rglob("*")) if p.is_file()])
            elif index % 3 == 1:
                target = chance.choice(sorted(p for p in (work / "in" / name).rglob("*") if p.is_file()))
                os.environ["XDG_CACHE_HOME"] = str(work / "cache")
            else:
                shutil.copytree(folder / "cache", work / "cache")
                os.environ["XDG_CACHE_HOME"] = str(work / "cache")
                target = next((work / "cache" / "lasa_jax" / "decoded").glob(f"{name}-*"))
            before = target.read_bytes()
            is_json = target.suffix == ".json"
            if target.suffix == ".gz" and chance.random() < 0.7:
                after = gzip.compress(mutate_bytes(gzip.decompress(before), chance))
            else:
                after = mutate_json(before, chance) if is_json else mutate_bytes(before, chance)
            times = target.stat()
            target.write_bytes(after)
            if index % 3 == 2:
                for path in (work / "in").rglob("*"):  # the cache knows a set by the times of its files
                    like = folder / "prepared" / path.relative_to(work / "in")
                    os.utime(path, ns=(like.stat().st_atime_ns, like.stat().st_mtime_ns))
                os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
            loaded, wrong = outcome(lambda n=name, o=out, s=source: data.load(n, data_dir=str(o), source=s))
            if isinstance(loaded, InputError) and index % 3 == 0 and out.exists() and contents(out):
                wrong = f"refused ({loaded}), and wrote {sorted(contents(out))[:3]}"
            if index % 3 == 2 and (wrong is None) and not isinstance(loaded, InputError):
                same = all(np.array_equal(a, b) for a, b in zip(loaded.train, good[name].train, strict=True))
                wrong = None if same else "a damaged cache was believed"
            if wrong is None and not isinstance(loaded, InputError):
                labels = np.concatenate([loaded.train.labels.ravel(), loaded.test.labels.ravel()])
                if labels.size == 0 or labels.min() < 0 or labels.max() >= loaded.num_classes:
                    wrong = "labels out of range"
            if wrong is not None:
                failures.append(f"data {index}, {target.relative_to(work)}: {wrong}")
            shutil.rmtree(work)
    return count, failures
