"""How the training examples are divided over clients: pure functions of (labels, settings, seed).

Every partition ends as a matrix of example indices, one row per client, padded to a width that depends on the labels and
settings but not on the seed (`quantity_skew` says where it may), so that runs with different seeds share one program.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lasa_jax.errors import InputError

_MAX_DRAWS = 1000
_MOST_PROPORTIONS = 18_000_000  # drawn for one partition: 300 draws of ten classes over 6,000 clients, a second
# After so many draws that all left so many clients with too few, one that leaves none is less likely than 1e-7.
_HOPELESS_AFTER, _HOPELESS = 50, 10


class Partition(NamedTuple):
    """indices: int32 `(num_clients, width)`, entries from `sizes[i]` on are padding. sizes: int32 `(num_clients,)`."""

    indices: np.ndarray
    sizes: np.ndarray


def stack(partitions: Sequence[Partition]) -> Partition:
    """Partitions of several runs as one with a leading axis of runs, all as wide as the widest."""
    width = max(one.indices.shape[1] for one in partitions)
    indices = [np.pad(one.indices, [(0, 0), (0, width - one.indices.shape[1])]) for one in partitions]
    return Partition(np.stack(indices), np.stack([one.sizes for one in partitions]))


def _pack(groups: list[np.ndarray], width: int) -> Partition:
    indices = np.zeros((len(groups), width), np.int32)
    for row, group in zip(indices, groups, strict=True):
        row[: len(group)] = group
    return Partition(indices, np.array([len(group) for group in groups], np.int32))


def _share(num_examples: int, num_clients: int) -> int:
    if num_clients > num_examples:
        raise InputError(f"config.num_clients = {num_clients}: allowed are 1 to {num_examples}, one example a client")
    return num_examples // num_clients


def iid(labels: np.ndarray, num_clients: int, seed: int) -> Partition:
    """Equal disjoint random sets of `len(labels) // num_clients` examples; what is left over belongs to nobody."""
    share = _share(len(labels), num_clients)
    order = np.random.default_rng([seed, 1]).permutation(len(labels))
    return _pack(list(order[: share * num_clients].reshape(num_clients, share)), share)


def class_balanced(labels: np.ndarray, num_clients: int, seed: int) -> Partition:
    """IID with the same number of examples of each class for every client (docs/fidelity.md, section 1.2)."""
    rng = np.random.default_rng([seed, 2])
    columns = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        share = _share(len(members), num_clients)
        columns.append(members[: share * num_clients].reshape(num_clients, share))
    groups = np.concatenate(columns, axis=1)
    return _pack(list(groups), groups.shape[1])


def dirichlet(labels: np.ndarray, num_clients: int, alpha: float, seed: int, *, min_samples: int = 10) -> Partition:
    """Class proportions from a symmetric Dirichlet distribution.

    Source: Hsu, Qi and Brown 2019; docs/fidelity.md, section 1.2.

    Class by class, the examples are divided by proportions drawn from Dirichlet(alpha); a client that already holds its
    equal share gets none of the class. The whole draw is repeated until every client has `min_samples`.

    Raises:
      InputError: if `min_samples` is not reached by 1,000 draws, fewer for very many clients; sooner where the first fifty
        leave no hope.
    """
    rng = np.random.default_rng([seed, 3])
    num_examples = len(labels)
    if min_samples * num_clients > num_examples:
        raise _too_many(min_samples, num_clients, num_examples)
    share = num_examples / num_clients
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(_HOPELESS_AFTER, min(_MAX_DRAWS, _MOST_PROPORTIONS // (num_clients * len(classes))))
    fewest_short = num_clients
    for draw in range(1, most + 1):
        orders, counts = [], []
        sizes = np.zeros(num_clients, np.int64)
        for members in classes:
            orders.append(rng.permutation(members))
            proportions = rng.dirichlet(np.full(num_clients, alpha)) * (sizes < share)
            if not proportions.sum() > 0:  # very small alpha: everything went to clients that are full
                proportions = (sizes < share).astype(float)
            cuts = (np.cumsum(proportions / proportions.sum())[:-1] * len(members)).astype(int)
            counts.append(np.diff(cuts, prepend=0, append=len(members)))
            sizes += counts[-1]
        short = int(np.sum(sizes < min_samples))
        if not short:
            # A client below its share takes at most one class more: a bound that no seed can exceed.
            width = min(num_examples, int(share) + max(len(members) for members in classes))
            owner = np.concatenate([np.repeat(np.arange(num_clients), count) for count in counts])
            order = np.concatenate(orders)[np.argsort(owner, kind="stable")]
            return _pack(np.split(order, np.cumsum(sizes)[:-1]), width)
        fewest_short = min(fewest_short, short)
        if draw == _HOPELESS_AFTER and fewest_short >= _HOPELESS:
            break
    raise InputError(
        f"config.partition.min_samples = {min_samples}: not reached by {draw} draws of Dirichlet({alpha}) over "
        f"{num_clients} clients, {fewest_short} had fewer in the best; allowed are fewer samples, fewer clients or a "
        f"larger alpha"
    )


def shards(labels: np.ndarray, num_clients: int, classes_per_client: int, seed: int) -> Partition:
    """Examples sorted by class and cut into `num_clients * classes_per_client` shards, dealt out at random.

    A client has about `classes_per_client` classes; a shard that spans two may add one. Source: McMahan, Moore, Ramage,
    Hampson and Aguera y Arcas, AISTATS 2017, section 3 (there 2 shards a client). What is left over belongs to nobody.
    """
    rng = np.random.default_rng([seed, 4])
    count = num_clients * classes_per_client
    if count > len(labels):
        raise InputError(
            f"config.partition.classes_per_client = {classes_per_client}: allowed are 1 to {len(labels) // num_clients}, "
            f"{len(labels)} examples in as many shards"
        )
    size = len(labels) // count
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")][: count * size]  # equal labels in random order
    dealt = rng.permutation(count).reshape(num_clients, classes_per_client)
    return _pack(list(order.reshape(count, size)[dealt].reshape(num_clients, -1)), classes_per_client * size)


def gamma_similarity(labels: np.ndarray, num_clients: int, gamma: float, seed: int) -> Partition:
    """A share `gamma` of every client's examples is IID, the others are consecutive in the order of the classes.

    1 is IID, 0 gives every client one or two classes. Source: Karimireddy et al., "SCAFFOLD", ICML 2020, section 7; ByzFL.
    """
    rng = np.random.default_rng([seed, 5])
    share = _share(len(labels), num_clients)
    alike = int(gamma * share + 1e-9)
    order = rng.permutation(len(labels))[: share * num_clients]
    mixed, rest = order[: alike * num_clients], order[alike * num_clients :]
    rest = rest[np.argsort(labels[rest], kind="stable")].reshape(num_clients, share - alike)
    return _pack(list(np.concatenate([mixed.reshape(num_clients, alike), rng.permutation(rest)], axis=1)), share)


def quantity_skew(labels: np.ndarray, num_clients: int, alpha: float, seed: int, *, min_samples: int = 10) -> Partition:
    """IID examples, but numbers of them by a symmetric Dirichlet distribution (Li, Diao, Chen and He, ICDE 2022).

    Every client gets `min_samples`, and of the rest a share drawn from Dirichlet(alpha). The width is the power of two
    that holds the largest client, so that most seeds share it.

    Raises:
      InputError: if there are not so many examples.
    """
    rng = np.random.default_rng([seed, 6])
    rest = len(labels) - num_clients * min_samples
    if rest < 0:
        raise _too_many(min_samples, num_clients, len(labels))
    ends = (np.cumsum(rng.dirichlet(np.full(num_clients, alpha))) * rest + 1e-6).astype(int)
    cuts = ends + min_samples * np.arange(1, num_clients + 1)
    groups = np.split(rng.permutation(len(labels)), cuts[:-1])
    largest = max(len(group) for group in groups)
    return _pack(groups, min(1 << (largest - 1).bit_length(), len(labels)))


def _too_many(min_samples: int, num_clients: int, num_examples: int) -> InputError:
    return InputError(
        f"config.partition.min_samples = {min_samples}: allowed are 0 to {num_examples // num_clients}, {num_examples} "
        f"examples over {num_clients} clients"
    )


def natural(
    client_ids: np.ndarray, *, num_clients: int | None = None, seed: int = 0, min_samples: int = 1
) -> Partition:
    """One client for each distinct id that owns at least `min_samples` examples, in the order of the ids.

    Args:
      client_ids: int `(num_examples,)`.
      num_clients: how many of them, drawn at random; all if None.
      seed: of that draw.
      min_samples: clients with fewer are left out.
    """
    order = np.argsort(client_ids, kind="stable")
    _, starts = np.unique(client_ids[order], return_index=True)
    groups = [group for group in np.split(order, starts[1:]) if len(group) >= min_samples]
    if not groups:
        raise InputError(f"config.partition.min_samples = {min_samples}: no client of the data has so many examples")
    width = max(len(group) for group in groups)
    if num_clients is not None:
        if num_clients > len(groups):
            raise InputError(
                f"config.num_clients = {num_clients}: allowed are 1 to {len(groups)}, the clients of the data"
            )
        drawn = np.random.default_rng([seed, 7]).permutation(len(groups))[:num_clients]
        groups = [groups[i] for i in np.sort(drawn)]
    return _pack(groups, width)


# Every partition and the settings of `config.partition` that it has.
SETTINGS: dict[str, tuple[str, ...]] = {
    "class_balanced": (),
    "dirichlet": ("alpha", "min_samples"),
    "gamma_similarity": ("gamma",),
    "iid": (),
    "natural": ("min_samples",),
    "quantity_skew": ("alpha", "min_samples"),
    "shards": ("classes_per_client",),
}
RAGGED = ("dirichlet", "natural", "quantity_skew")  # whose clients may differ in size
ALIKE = ("class_balanced", "iid")  # whose clients differ by chance only
_BY_CLASS: dict[str, Callable[..., Partition]] = {
    "class_balanced": class_balanced,
    "dirichlet": dirichlet,
    "gamma_similarity": gamma_similarity,
    "shards": shards,
}
_BY_COUNT: dict[str, Callable[..., Partition]] = {"iid": iid, "quantity_skew": quantity_skew}


def divide(
    settings: Mapping[str, Any],
    labels: np.ndarray,
    client_ids: np.ndarray | None,
    *,
    num_clients: int | None,
    seed: int,
) -> Partition:
    """The partition that the settings name.

    Args:
      settings: `config.partition`, resolved: "name", a key of `SETTINGS`, and what is listed there.
      labels: of the training examples, `(num_examples,)`, or `(num_examples, time)` for sequences.
      client_ids: who owns each example, where somebody does.
      num_clients: None only for "natural", which then takes all.
      seed: decides everything random.

    Raises:
      InputError: if the examples cannot be divided like that.
    """
    numbers = {key: value for key, value in settings.items() if key != "name"}
    name = settings["name"]
    if name == "natural":
        if client_ids is None:
            others = ", ".join(other for other in SETTINGS if other != "natural")
            raise InputError(
                f"config.partition.name = 'natural': the data has no clients of its own; allowed are {others}"
            )
        return natural(client_ids, num_clients=num_clients, seed=seed, **numbers)
    if num_clients is None:
        raise InputError(
            f"config.num_clients: must be set for the partition {name!r}; only 'natural' has its own number"
        )
    if name in _BY_CLASS:
        if labels.ndim > 1:
            raise InputError(
                f"config.partition.name = {name!r}: every position of a sequence has a label; allowed are iid, natural, "
                f"quantity_skew"
            )
        return _BY_CLASS[name](labels, num_clients, seed=seed, **numbers)
    return _BY_COUNT[name](labels, num_clients, seed=seed, **numbers)
