"""Files of a checkpoint: nothing damaged may be restored."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from checks.fuzz.failures import Failures, contents, outcome
from checks.fuzz.mutations import mutate_bytes, mutate_json
from lasa_jax.workdir import Workdir


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """Anything that differs from what was written must not be restored."""
    failures = Failures()
    state = {"params": {"kernel": jnp.arange(4000.0).reshape(40, 100), "bias": jnp.ones(7)}, "step": jnp.int32(3)}
    with tempfile.TemporaryDirectory() as temporary, Workdir(Path(temporary) / "run") as workdir:
        workdir.save_checkpoint(1, state, keep=1)
        folder = workdir.path / "checkpoints"
        shutil.copytree(folder, Path(temporary) / "good")
        for index in range(count):
            chance = random.Random(seed * 10**9 + index)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            target = chance.choice(files)
            content = target.read_bytes()
            kind = chance.randrange(8)
            if kind == 0:
                target.unlink()
            elif kind == 1:
                (target.parent / "another").write_bytes(content)
            elif kind == 2:
                target.unlink()
                chance.choice([lambda t: os.symlink("/dev/zero", t), os.mkfifo, os.mkdir])(target)
            elif target.suffix == ".json" and kind < 6:
                target.write_bytes(mutate_json(content, chance))
            else:
                target.write_bytes(mutate_bytes(content, chance))
            changed = contents(folder) != contents(Path(temporary) / "good")
            restored, wrong = outcome(lambda: workdir.restore_checkpoint(1, state))
            if wrong is None and restored is not None and changed:
                same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (restored, state)), strict=True))
                if target.suffix != ".json" or not same:  # spaces and order in a manifest do not matter
                    wrong = "was restored"
            if wrong is not None:
                failures.append(f"checkpoint {index}, {target.name}: {wrong}")
            shutil.rmtree(folder)
            shutil.copytree(Path(temporary) / "good", folder)
    return count, failures
