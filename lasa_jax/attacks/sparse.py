"""Attacks that treat coordinates differently: those that top-k drops and keeps, those to which the model is sensitive."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators import Context
from lasa_jax.aggregators.context import needed
from lasa_jax.attacks.base import (
    KNOWLEDGE,
    Attack,
    PyTree,
    Scalar,
    checked,
    honest_examples,
    known_rows,
    same_row,
    shaped_like,
)
from lasa_jax.attacks.distance import Line, largest_step
from lasa_jax.attacks.statistical import z_of_a_majority
from lasa_jax.errors import check_choice, check_number

CAPS = ("none", "iqr", "z_score")


def lasa_attack(
    small_share: float = 1.0,
    large_share: float = 0.01,
    large_factor: Scalar = 1.5,
    z: Scalar | None = None,
    sparsity_level: float = 0.3,
    knowledge: str = "benign",
) -> Attack:
    """Against LASA: the honest signs turned around, in every layer with the norm that LASA takes for ordinary.

        c_j   = for how many known clients coordinate j is among their int(sparsity_level d) smallest magnitudes
        a_j   = z in the int(small_share d) coordinates of smallest c; in int(large_share d) of these large_factor; else 0
        row_l = -a_l sign(mu_l), to the lower median over the known clients of |x_i,l|        for every layer l

    What is sent survives LASA's top-k where honest updates do, and has its median norm, so that only sign purity can tell.
    Of coordinates with the same c the first are taken; magnitudes that are equal to a client's threshold all count as small,
    since LASA drops them all. The attack `lasa` of FL-Byzantine-Library, where a layer is a weight with its bias; here it is
    one leaf of the update, as for LASA. Its factor of all entries' standard deviation cancels.

    Args:
      small_share: 1 in that library's configuration class, 0.7 on its command line.
      large_share: 0.01 in both.
      large_factor: 1.5 in both. May be traced.
      z: Phi^-1(1 - f / (2n)) if None. May be traced.
      sparsity_level: of the top-k that it expects.
      knowledge: whose updates, see `known_rows`.

    Raises:
      InputError: for a value out of range.
    """
    for name, share in (("small_share", small_share), ("large_share", large_share), ("sparsity_level", sparsity_level)):
        check_number(name, share, low=0, high=1)
    check_number("large_factor", large_factor, low=0)
    check_number("z", 0.0 if z is None else z, low=0)
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        n, f = jnp.sum(present, dtype=jnp.int32), jnp.maximum(jnp.sum(malicious, dtype=jnp.int32), 1)
        tail = f.astype(jnp.float32) / (2 * jnp.maximum(n, 1)).astype(jnp.float32)
        small = jax.scipy.special.ndtri(1 - tail) if z is None else z
        counts = times_small(updates, known, sparsity_level)
        size = sum(x.size for x in jax.tree.leaves(counts))
        often, few = (first_smallest(counts, int(share * size)) for share in (small_share, large_share))
        return turned_row(updates, known, often, few, small, large_factor)

    return same_row(craft_row)


def times_small(updates: PyTree, known: jax.Array, sparsity_level: float) -> PyTree:
    """For each coordinate the number of known clients that have it among their smallest magnitudes: float32 `(...)`."""
    size = sum(x[0].size for x in jax.tree.leaves(updates))
    smallest = int(sparsity_level * size)
    if smallest == 0:
        return jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), updates)
    limit = ops.map_rows(lambda row: ops.magnitude_threshold(jax.tree.leaves(row), size - smallest + 1), updates)

    def is_small(row: PyTree, limit: jax.Array) -> PyTree:
        return jax.tree.map(lambda x: (jnp.abs(x).astype(jnp.float32) <= limit).astype(jnp.float32), row)

    return ops.weighted_total(known.astype(jnp.float32), updates, limit, row_map=is_small)


def first_smallest(values: PyTree, count: int) -> PyTree:
    """Marks the `count` smallest of all entries of non-negative values, of equal ones the first: leaves bool."""
    leaves, structure = jax.tree.flatten(values)
    size = sum(x.size for x in leaves)
    if not 0 < count < size:
        return jax.tree.map(lambda x: jnp.full(x.shape, count > 0), values)
    limit = ops.magnitude_threshold(leaves, size - count + 1)
    flat = jnp.concatenate([x.ravel().astype(jnp.float32) for x in leaves])
    below, tied = flat < limit, flat == limit
    marked = below | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= count - jnp.sum(below, dtype=jnp.int32)))
    ends = [0]
    for x in leaves:
        ends.append(ends[-1] + x.size)
    parts = [marked[a:b].reshape(x.shape) for x, a, b in zip(leaves, ends[:-1], ends[1:], strict=True)]
    return jax.tree.unflatten(structure, parts)


def turned_row(
    updates: PyTree, known: jax.Array, small: PyTree, large: PyTree, small_factor: Scalar, large_factor: Scalar
) -> PyTree:
    """The row of `lasa_attack` for given coordinates, bool like one update."""
    kind = ops.wide(updates)
    low, high = (jnp.asarray(x).astype(kind) for x in (small_factor, large_factor))
    share = known.astype(kind) / jnp.maximum(jnp.sum(known, dtype=jnp.int32), 1).astype(kind)
    mean = ops.weighted_sum(share, updates)
    norms = ops.map_rows(lambda row: jax.tree.map(ops.tree_norm, row), updates)

    def layer(mean: jax.Array, small: jax.Array, large: jax.Array, norms: jax.Array) -> jax.Array:
        factor = jnp.where(large, high, jnp.where(small, low, 0))
        way = factor * jnp.sign(mean).astype(kind)
        length = ops.tree_norm(way)
        ordinary = ops.masked_median(norms.astype(kind), known, lower=True)
        return jnp.where(length > 0, -ordinary * way, 0) / jnp.where(length > 0, length, 1)

    return jax.tree.map(layer, mean, small, large, norms)


class Sensitive(NamedTuple):
    """What the attacker of `hybrid_sparse` remembers: leaves bool like one update, and whether they are known."""

    mask: PyTree
    found: jax.Array


def hybrid_sparse(
    mask: PyTree = None,
    share: float = 0.05,
    cap: str = "none",
    large_factor: Scalar = 1.5,
    z: Scalar | None = None,
    searched: bool = False,
    knowledge: str = "benign",
) -> Attack:
    """Far off in the few coordinates to which the model is sensitive, near the mean elsewhere (E. Özfatura, K. Özfatura,
    Buyukates, Coskuner, Küpçü and Gündüz, arXiv 2404.06230).

        row_j = mu_j - large_factor * min(std_j, limit)    on the mask
        row_j = mu_j - z * std_j                           elsewhere

    The mask, if it is not given, has the share of coordinates with the largest saliency |w_j g_j| of SNIP (Lee, Ajanthan and
    Torr, ICLR 2019), one of the methods of pruning that the attack's paper names. w is the global model of the first round
    in which a malicious client takes part; g, up to its length, is the mean of the malicious clients' own honest updates
    there. The mask is kept from then on.

    Args:
      mask: a pytree like one update, true or not 0 where the model is sensitive.
      share: of the coordinates in the mask that is computed, `0 < share <= 1`.
      cap: limit of the std on the mask: "none"; "iqr", q75 + 1.5 (q75 - q25) of the stds there; "z_score", their mean and
        two of their standard deviations.
      large_factor: 1.5 in the authors' library. May be traced.
      z: as `alie` has it if None. May be traced.
      searched: takes the largest z, at most 20, in place of it, with which the row stays within the bound of
        `min_sum_stealthy`: the sum of its squared distances to the known rows is at most the smallest of theirs. 0 if none.
      knowledge: whose mean and standard deviation, see `known_rows`.

    Raises:
      InputError: for a value out of range, a mask that is not shaped as the updates, and from `craft` without a context that
        has `params`, unless a mask is given.
    """
    check_number("share", share, above=0, high=1)
    check_choice("cap", cap, CAPS)
    check_number("large_factor", large_factor)
    check_number("z", 0.0 if z is None else z)
    check_choice("knowledge", knowledge, KNOWLEDGE)
    needs = frozenset({"params"} if mask is None else ())

    def init(params: PyTree) -> Sensitive:
        marked = jax.tree.map(lambda x: jnp.zeros(x.shape, bool), params)
        if mask is not None:
            marked = jax.tree.map(lambda x: jnp.asarray(x) != 0, shaped_like(mask, params, "mask"))
        return Sensitive(marked, jnp.asarray(mask is not None))

    def craft(
        updates: PyTree,
        state: Sensitive,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: Context | None = None,
    ) -> tuple[PyTree, Sensitive]:
        malicious, present = checked(updates, malicious, present)
        if mask is None:
            state = _found_once(state, needed(context, needs, "hybrid_sparse").params, updates, malicious, share)
        known = known_rows(knowledge, malicious, present)
        kind = ops.wide(updates)
        mean, std = (jax.tree.map(lambda x: x.astype(kind), part) for part in ops.mean_and_std(updates, known))
        limit = _limit(std, state.mask, cap)
        far = jnp.asarray(large_factor, kind)
        start = jax.tree.map(lambda x, s, on: jnp.where(on, x - far * jnp.minimum(s, limit), x), mean, std, state.mask)
        elsewhere = jax.tree.map(lambda s, on: jnp.where(on, 0, s), std, state.mask)
        if searched:
            row = _farthest(updates, known, mean, start, elsewhere)
        else:
            step = jnp.asarray(z_of_a_majority(malicious, present) if z is None else z).astype(kind)
            row = jax.tree.map(lambda x, s: x - step * s, start, elsewhere)
        return ops.replace_rows(lambda _: row, updates, malicious), state

    return Attack(init, honest_examples, craft, needs=needs)


def _found_once(state: Sensitive, params: PyTree, updates: PyTree, malicious: jax.Array, share: float) -> Sensitive:
    """The state with the mask of the malicious clients' own updates, if it has none and there is such a client."""
    due = jnp.any(malicious) & ~state.found

    def find() -> PyTree:
        kind = ops.wide(updates)
        weights = malicious.astype(kind) / jnp.maximum(jnp.sum(malicious, dtype=jnp.int32), 1).astype(kind)
        gradient = ops.weighted_sum(weights, updates)
        saliency = jax.tree.map(lambda w, g: jnp.abs(w.astype(kind) * g.astype(kind)), params, gradient)
        leaves = jax.tree.leaves(saliency)
        limit = ops.magnitude_threshold(leaves, max(1, int(share * sum(x.size for x in leaves))))
        return jax.tree.map(lambda s: (s.astype(jnp.float32) >= limit) & (s > 0), saliency)

    found = jax.lax.cond(ops.any_run(due), find, lambda: state.mask)
    return Sensitive(jax.tree.map(lambda new, old: jnp.where(due, new, old), found, state.mask), state.found | due)


def _limit(std: PyTree, mask: PyTree, cap: str) -> jax.Array:
    """The largest standard deviation that is used on the mask, a scalar."""
    masked = [jnp.where(on, s, 0) for s, on in zip(jax.tree.leaves(std), jax.tree.leaves(mask), strict=True)]
    kind = ops.wide(std)
    if cap == "none":
        return jnp.asarray(jnp.inf, kind)
    count = sum((jnp.sum(on, dtype=jnp.int32) for on in jax.tree.leaves(mask)), jnp.int32(0))
    if cap == "z_score":
        mean = sum((ops.total(s) for s in masked), jnp.zeros((), kind)) / jnp.maximum(count, 1).astype(kind)
        apart = [jnp.where(on, s - mean, 0) for s, on in zip(masked, jax.tree.leaves(mask), strict=True)]
        return mean + 2 * jnp.sqrt(ops.tree_dot(apart, apart) / jnp.maximum(count - 1, 1).astype(kind))

    def quantile(share: float) -> jax.Array:
        at = jnp.float32(share) * (jnp.maximum(count, 1) - 1).astype(jnp.float32)
        below = jnp.floor(at)
        # What is not masked is 0, and so below all that is.
        low, high = (
            ops.magnitude_threshold(masked, jnp.maximum(count - below.astype(jnp.int32) - more, 1)) for more in (0, 1)
        )
        return low + (high - low) * (at - below)

    lower, upper = quantile(0.25), quantile(0.75)
    return (upper + 1.5 * (upper - lower)).astype(kind)


def _farthest(updates: PyTree, known: jax.Array, mean: PyTree, start: PyTree, direction: PyTree) -> PyTree:
    """`start - step * direction` with the largest step within the bound of `min_sum_stealthy`."""

    def measured(row: PyTree, mean: PyTree, start: PyTree, direction: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
        from_mean, moved = (jax.tree.map(lambda x, y: x.astype(y.dtype) - y, row, place) for place in (mean, start))
        return ops.tree_dot(from_mean, from_mean), ops.tree_dot(moved, moved), ops.tree_dot(moved, direction)

    measures = ops.map_rows(measured, updates, shared=(mean, start, direction))
    spread, a, b = (jnp.where(known, x, 0.0) for x in measures)
    line = Line(start, direction, known, a, b, ops.tree_dot(direction, direction))
    # sum_j |x_i - x_j|^2 = k |x_i - mean|^2 + sum_j |x_j - mean|^2
    sums = jnp.sum(known, dtype=jnp.int32).astype(a.dtype) * spread + jnp.sum(spread)
    bound = jnp.min(sums, where=known, initial=jnp.inf)
    return line.at(largest_step(lambda step: jnp.sum(line.squared(step)) <= bound))
