"""Times one MNIST round at the paper's settings and its parts: `python -m benchmarks.round [--rounds=3]`.

100 clients, 5 local steps of 10 images, the official code's ByzMean, LASA, evaluated on 10,000 images. Needs MNIST
(`TFDS_DATA_DIR`). Where PyTorch is installed, the parts of the official round are timed in the same run, each as the
official code computes it, written anew: ratios between the columns are what carries over to another machine.
"""

import argparse
import functools
import resource
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import best_of, machine
from lasa_jax import aggregators, build
from lasa_jax import config as configs
from lasa_jax.data import FederatedDataset
from lasa_jax.federated import Program, make_mesh, one_round
from lasa_jax.federated.evaluation import evaluate
from lasa_jax.federated.round import draw_clients, round_keys, train_clients
from lasa_jax.main import use_all_cores


def local_training(program: Program) -> Any:
    """The training of a round's clients, jitted: `(state, point, fed, round index) -> (updates, who is malicious)`."""

    @jax.jit
    def train(state: Any, point: Any, fed: Any, index: jax.Array) -> Any:
        keys = round_keys(point.key, index)
        clients = draw_clients(program, point, keys.draw)
        updates, *_ = train_clients(program, state.attack, state.variables, point, fed, clients, index, key=keys.train)
        return updates, clients.malicious

    return train


def ours(rounds: int) -> tuple[dict[str, float], Iterator[np.ndarray]]:
    """Seconds of our round and its parts on all devices; and the honest updates of each round, flat, `(100, d)`."""
    config = configs.paper("mnist")
    config.update_from_flattened_dict({"fidelity": "official", "attack.name": "byzmean"})
    config = configs.resolve(config)
    _, dataset, shares, program, point = build.prepare(config)
    fed = jax.tree.map(jnp.asarray, FederatedDataset(dataset.train, dataset.test, shares))
    state = program.init(point)
    attack, rule = program.make_attack(point.attack), program.make_aggregator(point.aggregator)

    @functools.partial(jax.jit, donate_argnums=0)
    def whole(state: Any, index: jax.Array) -> Any:
        state, metrics = one_round(program, state, point, fed, index)
        return state, metrics, evaluate(program, state, fed.test, config.eval_batch_size)

    result = {}
    compiled = whole.lower(state, jnp.int32(1)).compile()
    current, seconds, starts = jax.tree.map(jnp.copy, state), [], []
    for index in range(1, rounds + 1):
        starts.append(jax.tree.map(jnp.copy, current))
        began = time.perf_counter()
        current, *_ = jax.block_until_ready(compiled(current, jnp.int32(index)))
        seconds.append(time.perf_counter() - began)
    result[f"whole round, mean of {rounds}"] = float(np.mean(seconds))
    result["peak memory, GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    train = local_training(program)
    result["local training"] = best_of(train, state, point, fed, jnp.int32(1), repeat=1)
    test = jax.jit(lambda state: evaluate(program, state, fed.test, config.eval_batch_size))
    result["evaluation"] = best_of(test, state)
    updates, malicious = train(state, point, fed, jnp.int32(1))

    def honest() -> Iterator[np.ndarray]:
        for index, start in enumerate(starts, 1):
            leaves = jax.tree.leaves(train(start, point, fed, jnp.int32(index))[0])
            yield np.concatenate([np.reshape(x, (len(x), -1)) for x in leaves], axis=1)

    craft = jax.jit(lambda u, m: attack.craft(u, (), m, key=point.key)[0])
    result["ByzMean"] = best_of(craft, updates, malicious)
    updates = craft(updates, malicious)
    aggregate = jax.jit(lambda u: rule.aggregate(u, (), key=point.key, num_malicious=0)[0])
    result["LASA"] = best_of(aggregate, updates)
    mean = jax.jit(lambda u: aggregators.fedavg().aggregate(u, (), key=point.key, num_malicious=0)[0])
    result["average of the stack"] = best_of(mean, updates)
    result["sum of the parts"] = sum(result[part] for part in ("local training", "evaluation", "ByzMean", "LASA"))
    return result, honest()


def pytorch(updates: Iterator[np.ndarray]) -> dict[str, float]:
    """Seconds of the same parts in PyTorch, the mean over rounds for rule and attack; empty if it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    nn = torch.nn
    layers = [nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(32, 64, 5, padding=2)]
    layers += [
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3136, 512),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(512, 10),
    ]
    model = nn.Sequential(*layers)
    images, labels = torch.randn(10, 1, 28, 28), torch.randint(0, 10, (10,))

    def train() -> None:
        for _ in range(100):
            optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()

    batch = torch.randn(128, 1, 28, 28)

    def test() -> None:
        with torch.no_grad():
            for _ in range(79):
                model(batch)

    def byzmean() -> torch.Tensor:
        """Statistics over all rows; every malicious row is the second group's (docs/fidelity.md, section 4.1)."""
        lie = stack.mean(0) - 0.5 * stack.std(0)
        stack[:25] = ((100 - 25 - 12) * lie - stack.sum(0)) / 13
        return stack

    def lasa() -> list[torch.Tensor]:
        """LASA with a full sort for each client, as in the official code (docs/fidelity.md, section 2.1)."""
        norms = stack.norm(dim=1)
        scale = torch.clamp(norms.median() / norms, max=1.0)
        rows = []
        for i in range(100):
            layers = [layer.clone() for layer in (stack[i] * scale[i]).split(sizes)]
            magnitudes = torch.cat([layers[j].abs() for j in matrices])
            threshold = torch.sort(magnitudes, descending=True).values[int(magnitudes.numel() * (1 - 0.3)) - 1]
            for j in matrices:
                layers[j][layers[j].abs() <= threshold] = 0
            rows.append(layers)
        result = []
        for j in range(len(sizes)):
            layer = torch.stack([row[j] for row in rows])
            signs = layer.sign()
            keep = torch.ones(100, dtype=torch.bool)
            for values, radius in ((layer.norm(dim=1), 2.0), (signs.sum(1) / signs.abs().sum(1), 1.0)):
                middle = values.quantile(0.5)
                keep &= (values - middle).abs() / values.std(unbiased=False) < radius
            result.append(layer[keep].mean(0))
        return result

    sizes = [p.numel() for p in model.parameters()]
    matrices = [j for j, p in enumerate(model.parameters()) if p.ndim in (2, 4)]
    result = {"local training": best_of(train, repeat=1)}
    model.eval()
    result["evaluation"] = best_of(test)
    seconds = []
    for honest in updates:  # zeros grow from round to round, and the sort is faster on ties
        stack = torch.from_numpy(honest)
        seconds.append((best_of(byzmean, repeat=1), best_of(lasa, repeat=1)))
    result["ByzMean"], result["LASA"] = np.mean(seconds, axis=0)
    result["average of the stack"] = best_of(lambda: stack.mean(0))
    parts = ("local training", "evaluation", "ByzMean", "LASA")
    result["sum of the parts"] = sum(result[part] for part in parts)
    return result


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    use_all_cores(100)
    with jax.set_mesh(make_mesh()):
        left, updates = ours(rounds)
        right = pytorch(updates)
    print(f"{machine()}\n")
    print("| part | lasa_jax (s) | PyTorch (s) |\n| --- | --- | --- |")
    for part in {**left, **right}:
        cells = [f"{column[part]:.3f}" if part in column else "-" for column in (left, right)]
        print(f"| {part} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
