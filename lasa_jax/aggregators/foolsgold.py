"""FoolsGold (Fung, Yoon and Beschastnikh, RAID 2020): clients who resemble each other over time lose their weight."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, Diagnostics, PyTree, Rows, scale
from lasa_jax.aggregators.preaggregators import clip_factors
from lasa_jax.aggregators.remembering import check_num_clients, ids_of, named_layers, population
from lasa_jax.errors import InputError, check_choice

_NEEDS = frozenset({"ids"})
_SMALL = 1e-5  # e of the authors' code


def foolsgold(num_clients: int | None = None, features: str = "all", combine: str = "sum") -> Aggregator:
    """The sum of the updates, of those clients whose histories are like nobody else's.

        u_i  = x_i / max(1, |x_i|),    H_i <- H_i + u_i                         H_i by client, this round included
        v_i  = max over j of c_ij + e,    c_ij = cos(H_i, H_j), c_ii = 0        e = 1e-5
        c_ij <- c_ij * v_i / v_j where v_i < v_j                                pardoning
        a_i  = clip(1 - max over j of c_ij, 0, 1),    a_i <- a_i / max over j of a_j, and 0.99 where that is 1
        a_i  <- clip(ln(a_i / (1 - a_i) + e) + 0.5, 0, 1),    F(Delta) = sum over i of a_i u_i

    e and the bound of 1 on an update are those of the authors' code. The sum is not divided by anything: with many honest
    clients it is that many steps, so the server's step grows with n, and where clients send whole local trainings and not
    one gradient, as in all runs here, that is too long (digits end at chance). `combine="mean"` divides it by the sum of
    the a_i, as later comparisons do. Made against several clients that want the same. One
    alone passes, and clients that are alike for another reason, as on IID data, lose their weight: where all are the same
    the result is zero (the authors' code gives NaN). A client moves the result by 1 at most. No bound is known otherwise.

    A client that is not finite has weight 0, and its history stays. Does not use `num_malicious`. The state is one model for
    each client of the population, sharded over the devices that share a run's clients.

    Args:
      num_clients: size of the population; a run takes `config.num_clients`.
      features: what of a history is compared, and kept: "all"; "last_layer", the module that comes last in the order of
        names among those with a matrix, as in the paper, which looks at the output layer; or how the names of layers begin,
        "params/dense2".

      combine: "sum", or "mean": divided by the sum of the a_i, zero where that is.

    Raises:
      InputError: for a number out of range or another word; in `init` without `num_clients` and for features that the
        model has not; in `aggregate` behind a pre-aggregator that mixes rows.

    `weight` is a_i, that of the capped update u_i, or its share.
    """
    check_num_clients(num_clients)
    check_choice("combine", combine, ("sum", "mean"))

    def init(params: PyTree) -> PyTree:
        count = population(num_clients, "foolsgold")
        return [ops.ByClient.zeros(count, x) for x in _chosen(params, features)]

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Diagnostics]:
        rows = Rows.of(updates, present)
        ids, _ = ids_of(rows, context, _NEEDS, "foolsgold")
        largest, norms = rows.sizes
        usable = rows.present & jnp.isfinite(largest) & jnp.isfinite(norms)
        capped = rows.mapped(scale, clip_factors(norms, jnp.ones((), rows.dtype)))

        def grown(u: PyTree, history: list[jax.Array], counts: jax.Array) -> list[jax.Array]:
            added = zip(history, _chosen(u, features), strict=True)
            return [h + jnp.where(counts, x, 0).astype(h.dtype) for h, x in added]

        histories = capped.remembering(grown, state, ids, usable)  # the one stack that it writes
        state = ops.put_clients(state, ids, usable, histories)
        trust = _trust(_distances(histories, usable), usable)
        if combine == "mean":
            total = jnp.sum(trust)
            trust = trust / jnp.where(total > 0, total, 1.0)
        weight = jax.tree.map(lambda _: trust, rows.stack)
        return capped.weighted_sum(trust), state, Diagnostics(weight)

    return Aggregator(init, aggregate, _NEEDS)


def _chosen(tree: PyTree, features: str) -> list[jax.Array]:
    """The layers of one update that are compared, see `foolsgold`."""
    names, leaves = named_layers(tree), jax.tree.leaves(tree)
    begins = "" if features == "all" else features
    if features == "last_layer":
        matrices = [name for name, x in zip(names, leaves, strict=True) if x.ndim >= 2]
        module, slash, _ = (matrices or names)[-1].rpartition("/")
        begins = module + slash or (matrices or names)[-1]
    chosen = [x for name, x in zip(names, leaves, strict=True) if name.startswith(begins)]
    if not chosen:
        raise InputError(
            f"features = {features!r}: allowed are all, last_layer or how a layer begins: {', '.join(names)}"
        )
    return chosen


def _distances(histories: list[jax.Array], usable: jax.Array) -> jax.Array:
    """1 - cos(H_i, H_j) of all pairs, `(n, n)`, exact also where two are nearly the same; 1 with a history of zeros.

    = (|H_i - H_j|^2 - (|H_i| - |H_j|)^2) / (2 |H_i| |H_j|)
    """
    rows = Rows.of(histories, usable)
    _, norms = rows.sizes
    # Shorter ones count as zero: squares must not leave float32.
    has_direction = usable & jnp.isfinite(jnp.diagonal(rows.gram)) & (norms > jnp.finfo(norms.dtype).tiny ** 0.4)
    both = has_direction[:, None] & has_direction[None, :]
    norms = jnp.where(has_direction, norms, 1.0)
    by = jax.lax.stop_gradient(norms)  # divided by constants first, so that no derivative leaves float32
    apart = jnp.where(both, rows.squared_distances, 0.0) / by[:, None] / by[None, :]
    longer = norms[:, None] - norms[None, :]
    apart = apart - (longer / by[:, None]) * (longer / by[None, :])
    lengths = norms / by
    return jnp.where(both, jnp.clip(apart / (2 * lengths[:, None] * lengths[None, :]), 0.0, 2.0), 1.0)


def _trust(distances: jax.Array, usable: jax.Array) -> jax.Array:
    """The weights a_i, `(n,)`, from 1 - cos; in these terms nothing cancels between clients that are nearly the same."""
    place = jnp.arange(len(usable), dtype=jnp.int32)
    others = usable[:, None] & usable[None, :] & (place[:, None] != place[None, :])
    nearest = jnp.min(jnp.where(others, distances, 1.0), axis=1, initial=1.0)  # 1 - max of c_ij, c_ii = 0
    likeness = 1 - nearest + _SMALL
    pardoned = likeness[:, None] < likeness[None, :]
    taken = jnp.where(pardoned, (nearest[:, None] - nearest[None, :]) / likeness[None, :], 0.0)  # 1 - v_i / v_j
    a = jnp.min(jnp.where(others, taken + (1 - taken) * distances, 1.0), axis=1, initial=1.0)
    a = jnp.where(usable, jnp.clip(a, 0.0, 1.0), 0.0)
    largest = jnp.max(a)
    a = a / jnp.where(largest > 0, largest, 1.0)
    a = jnp.where(a == 1, 0.99, a)
    return jnp.where(usable, jnp.clip(jnp.log(a / (1 - a) + _SMALL) + 0.5, 0.0, 1.0), 0.0)
