"""How the training examples are divided over clients: pure functions of (labels, settings, seed).

Every partition ends as a matrix of example indices, one row a client, padded to a width that depends on the labels and
settings but never on the seed, so that runs with different seeds share one compiled program.
"""

from typing import NamedTuple

import numpy as np

from lasa_jax.errors import InputError

_MAX_DRAWS = 1000


class Partition(NamedTuple):
    """indices: int32 `(num_clients, width)`, entries from `sizes[i]` on are padding. sizes: int32 `(num_clients,)`."""

    indices: np.ndarray
    sizes: np.ndarray


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
    """IID with the same number of examples of each class for every client (FIDELITY.md, section 6: CIFAR)."""
    rng = np.random.default_rng([seed, 2])
    columns = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        share = _share(len(members), num_clients)
        columns.append(members[: share * num_clients].reshape(num_clients, share))
    groups = np.concatenate(columns, axis=1)
    return _pack(list(groups), groups.shape[1])


def dirichlet(labels: np.ndarray, num_clients: int, alpha: float, seed: int, *, min_samples: int = 10) -> Partition:
    """Class proportions from a symmetric Dirichlet distribution (Hsu, Qi and Brown 2019; FIDELITY.md, section 6).

    Class by class, the examples are divided by proportions drawn from Dirichlet(alpha); a client that already holds its
    equal share gets none of the class. The whole draw is repeated until every client has `min_samples`.

    Raises:
      InputError: if 1,000 draws do not reach `min_samples`.
    """
    rng = np.random.default_rng([seed, 3])
    num_examples = len(labels)
    share = num_examples / num_clients
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(_MAX_DRAWS):
        parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
        sizes = np.zeros(num_clients, np.int64)
        for members in classes:
            members = rng.permutation(members)
            proportions = rng.dirichlet(np.full(num_clients, alpha)) * (sizes < share)
            if not proportions.sum() > 0:  # very small alpha: everything went to clients that are full
                proportions = (sizes < share).astype(float)
            cuts = (np.cumsum(proportions / proportions.sum())[:-1] * len(members)).astype(int)
            for client, part in enumerate(np.split(members, cuts)):
                parts[client].append(part)
                sizes[client] += len(part)
        if sizes.min() >= min_samples:
            # A client below its share takes at most one class more: a bound that no seed can exceed.
            width = min(num_examples, int(share) + max(len(members) for members in classes))
            return _pack([np.concatenate(part) for part in parts], width)
    raise InputError(
        f"config.partition.min_samples = {min_samples}: not reached by {_MAX_DRAWS} draws of Dirichlet({alpha}) over "
        f"{num_clients} clients; allowed are fewer samples, fewer clients or a larger alpha"
    )


def natural(client_ids: np.ndarray, *, min_samples: int = 1) -> Partition:
    """One client for each distinct id that owns at least `min_samples` examples, in the order of the ids."""
    order = np.argsort(client_ids, kind="stable")
    _, starts = np.unique(client_ids[order], return_index=True)
    groups = [group for group in np.split(order, starts[1:]) if len(group) >= min_samples]
    if not groups:
        raise InputError(f"config.partition.min_samples = {min_samples}: no client of the data has so many examples")
    return _pack(groups, max(len(group) for group in groups))
