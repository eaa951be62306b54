"""FLDetector (Zhang, Cao, Jia and Gong, KDD 2022): removes clients whose updates are not what their last ones foretell."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, PyTree, Rows, equal_weights, is_finite
from lasa_jax.aggregators.gap_statistic import two_groups
from lasa_jax.aggregators.lbfgs import Pairs, hessian_times
from lasa_jax.aggregators.remembering import check_num_clients, ids_of, mean_of_last, only, population
from lasa_jax.errors import check_number

_NEEDS = frozenset({"ids", "params"})


class DetectorState(NamedTuple):
    """What the server remembers. Clients by id; rounds are counted from 1 since training last started.

    Attributes:
      initial: the model with which training starts again.
      model: that of the round before.
      mean: mean update of the round before.
      pairs: of changes of the model and of the mean update.
      rounds: int32, rounds so far.
      last: `ByClient`, the last update of each client.
      last_round: int32 `(num_clients,)`, when it was sent, 0 if never.
      scores: `(num_clients, window)`, the last scores of each client, in slots that are taken in turn.
      num_scores: int32 `(num_clients,)`, how many a client has had.
      removed: bool `(num_clients,)`.
    """

    initial: PyTree
    model: PyTree
    mean: PyTree
    pairs: Pairs
    rounds: jax.Array
    last: PyTree
    last_round: jax.Array
    scores: jax.Array
    num_scores: jax.Array
    removed: jax.Array


class DetectorDiagnostics(NamedTuple):
    """What FLDetector made of the clients of a round.

    weight: see `Diagnostics`; 0 for all in a round in which training starts again. suspicion: `(n,)`, mean of a client's
    last scores, 0 without one. removed: bool `(n,)`, from this round on or earlier. restarts: bool `()`.
    """

    weight: PyTree
    suspicion: jax.Array
    removed: jax.Array
    restarts: jax.Array


def fldetector(num_clients: int | None = None, window: int = 10, start_round: Count = 50) -> Aggregator:
    """The mean of the clients that were not removed; where it finds malicious ones it removes them and starts again.

        foretold x_i = last x_i + B (w - last w)        w the global model; B: L-BFGS, see `aggregators.lbfgs`
        score_i = |foretold x_i - x_i| / sum over j of the same,    suspicion_i = mean of the last `window` scores

    After `start_round` rounds the gap statistic of the suspicions says in each round whether there is more than one cluster.
    If so, the clients in the upper one of two clusters are removed for good, the model goes back to what it was before the
    first round, and all but who is removed is forgotten. The gap statistic's references are drawn, as the authors' code does
    it: ln of the mean, where its paper has the mean of ln.

    A client is scored in a round that follows one in which it took part too: made for rounds in which everybody does, and
    slow to see anything where few of many are drawn. It stands malicious clients that are a minority and whose updates
    jump; no bound is known, and until they are found the result is a plain mean. A client that is not finite has weight 0
    and no score in that round. Does not use `num_malicious`. The state is one model for each client of the population,
    sharded over the devices that share a run's clients, and 2 * `window` + 3 models.

    Args:
      num_clients: size of the population; a run takes `config.num_clients`.
      window: pairs that B is made of, and scores that count, 1 to 100.
      start_round: rounds before the first judgement, `>= 1`; the authors' 50. May be traced.

    Raises:
      InputError: for a number out of range; in `init` without `num_clients`; in `aggregate` behind a pre-aggregator that
        mixes rows.
    """
    check_num_clients(num_clients)
    check_number("window", window, low=1, high=100, whole=True)
    check_number("start_round", start_round, low=1, whole=True)

    def init(params: PyTree) -> DetectorState:
        count = population(num_clients, "fldetector")
        initial = jax.tree.map(jnp.copy, params)  # a state is donated: no buffer stands in it twice
        model, mean = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        last = jax.tree.map(lambda x: ops.ByClient.zeros(count, x), params)
        zeros, scores = jnp.zeros(count, jnp.int32), jnp.zeros((count, window), ops.wide(params))
        pairs, removed = Pairs.none(window, params), jnp.zeros(count, bool)
        return DetectorState(initial, model, mean, pairs, jnp.int32(0), last, zeros, scores, jnp.copy(zeros), removed)

    def aggregate(
        updates: PyTree,
        state: DetectorState,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, DetectorState, DetectorDiagnostics]:
        rows = Rows.of(updates, present)
        ids, known = ids_of(rows, context, _NEEDS, "fldetector")
        rows = rows.accepting(rows.each(is_finite) & ~state.removed[ids])
        weight = equal_weights(rows, rows.present)
        mean, now = rows.weighted_sum(weight), state.rounds + 1

        step = jax.tree.map(jnp.subtract, known.params, state.model)
        foretold = hessian_times(state.pairs, step)
        errors = ops.everywhere(rows.remembering(_error, state.last, ids, shared=(foretold,)))
        scored = rows.present & (state.last_round[ids] == now - 1) & (state.pairs.known > 0)
        total = jnp.sum(jnp.where(scored, errors, 0.0))
        slot = state.num_scores[ids] % window
        score = errors / jnp.where(total > 0, total, 1.0)
        scores = state.scores.at[only(ids, scored, state.scores), slot].set(score, mode="drop")
        num_scores = state.num_scores.at[only(ids, scored, scores)].add(1, mode="drop")
        suspicion = mean_of_last(scores[ids], num_scores[ids])

        due = now > start_round
        judge = lambda: two_groups(suspicion, scored, key)  # noqa: E731
        nothing = lambda: (jnp.asarray(False), jnp.zeros_like(scored))  # noqa: E731
        found, upper = jax.lax.cond(ops.any_run(due), judge, nothing)
        restarts = due & found
        caught = only(ids, restarts & upper, state.removed)
        removed = state.removed.at[caught].set(True, mode="drop")

        change = jax.tree.map(jnp.subtract, mean, state.mean)
        pairs = state.pairs.with_pair(step, change, now > 1)
        started = jnp.where(restarts, 0, 1)
        after = DetectorState(
            initial=state.initial,
            model=known.params,
            mean=mean,
            pairs=pairs._replace(known=started * pairs.known),
            rounds=started * now,
            last=ops.put_clients(state.last, ids, rows.present, rows.written),
            last_round=started * state.last_round.at[only(ids, rows.present, removed)].set(now, mode="drop"),
            scores=scores,
            num_scores=started * num_scores,
            removed=removed,
        )
        back = jax.tree.map(jnp.subtract, state.initial, known.params)
        update = jax.tree.map(lambda x, y: jnp.where(restarts, x, y), back, mean)
        weight = jax.tree.map(lambda w: jnp.where(restarts, 0.0, w), weight)
        return update, after, DetectorDiagnostics(weight, suspicion, removed[ids], restarts)

    return Aggregator(init, aggregate, _NEEDS)


def _error(row: PyTree, last: PyTree, foretold: PyTree) -> jax.Array:
    """|last + foretold change - row|, in the type of the change."""

    def off(x: jax.Array, last: jax.Array, change: jax.Array) -> jax.Array:
        return last.astype(change.dtype) + change - x.astype(change.dtype)

    return ops.tree_norm(jax.tree.map(off, row, last, foretold))
