"""What goes into a round and what comes out of it: state, numbers, program, clients, keys, metrics."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.federated.client import SGD, LocalTraining
from lasa_jax.models import Variables

Numbers = Mapping[str, Any]  # arrays by name, or tables of them


class State(NamedTuple):
    """What a run carries from round to round.

    Attributes:
      variables: the global model.
      attack: what the attack remembers.
      aggregator: what the rule remembers.
      last_update: what the rule returned in the round before, where rule or attack need it; else `()`.
    """

    variables: Variables
    attack: Any
    aggregator: Any
    last_update: Any = ()


class Point(NamedTuple):
    """The numbers of one run, all of them data of the compiled program.

    Attributes:
      key: the run's random key.
      malicious: bool `(num_clients,)`, who is compromised.
      assumed_malicious: the server's f.
      sgd: numbers of local training.
      attack: what `Program.make_attack` is given.
      aggregator: what `Program.make_aggregator` is given.
      root: int32 `(root_examples,)`, training examples that the server has too, where a rule needs its update; else `()`.
      participating: int32, how many malicious clients take part in every round where `Program.participation` is "fixed";
        else `()`.
    """

    key: jax.Array
    malicious: jax.Array
    assumed_malicious: jax.Array
    sgd: SGD
    attack: Numbers
    aggregator: Numbers
    root: Any = ()
    participating: Any = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What is compiled in: everything that is not a number of a `Point`.

    Attributes:
      local_training: how one client trains.
      make_attack: `numbers -> Attack`, called once in each trace with `Point.attack`.
      make_aggregator: `numbers -> Aggregator`, with `Point.aggregator`.
      num_clients: size of the population.
      clients_per_round: how many of them are drawn in each round.
      participation: "drawn": uniformly from the population, so that the number of malicious ones varies; "fixed":
        `Point.participating` of the malicious ones, the others from the benign.
      client_chunk: clients trained together, None for the platform's choice.
      ragged: whether clients differ in their numbers of steps.
      measures_clients: whether the last round reports how the model serves the clients, see `fairness.worst_tenth`.
      record_filtering: whether each round reports `Filtering`.
    """

    local_training: LocalTraining
    make_attack: Callable[[Numbers], Attack]
    make_aggregator: Callable[[Numbers], Aggregator]
    num_clients: int
    clients_per_round: int
    client_chunk: int | None = None
    ragged: bool = False
    participation: str = "drawn"
    measures_clients: bool = False
    record_filtering: bool = False

    def init(self, point: Point) -> State:
        """The state before the first round."""
        variables = self.local_training.model.init(jax.random.fold_in(point.key, 0))
        attack, rule = self.make_attack(point.attack), self.make_aggregator(point.aggregator)
        keeps = "last_update" in attack.needs | rule.needs
        last_update = jax.tree.map(jnp.zeros_like, variables) if keeps else ()
        return State(variables, attack.init(variables), rule.init(variables), last_update)


class RoundKeys(NamedTuple):
    """The random keys of a round, one for each use. Every draw is a function of (seed, round, client).

    A key is folded with the place of its field: new fields come last. Rounds count from 1; 0 is the model's start.

    Attributes:
      draw: of the clients that take part.
      train: of local training, folded with each client's id.
      attack: of crafted rows, folded with the place among the clients of the round, which seed and round decide.
      aggregate: of the rule.
      rehearse: of the rule where an attack tries it.
      server: of the server's own training.
    """

    draw: jax.Array
    train: jax.Array
    attack: jax.Array
    aggregate: jax.Array
    rehearse: jax.Array
    server: jax.Array


class Clients(NamedTuple):
    """The clients of a round, in the order of their rows.

    n is `clients_per_round` rounded up to a multiple of the devices; the rows beyond it are absent.

    Attributes:
      ids: int32 `(n,)`; those of absent rows mean nothing.
      malicious: bool `(n,)`, present ones only.
      present: bool `(n,)`.
    """

    ids: jax.Array
    malicious: jax.Array
    present: jax.Array


class Trained(NamedTuple):
    """What local training of the clients of a round gives.

    Attributes:
      updates: stacked, leaves `(n, ...)`.
      losses: `(n,)`.
      step_waste: see `RoundMetrics`.
    """

    updates: Any
    losses: jax.Array
    step_waste: jax.Array


class Filtering(NamedTuple):
    """What the rule made of each client of a round, where `Program.record_filtering` is set.

    Attributes:
      client: int32 `(n,)`, ids, -1 in rows that are absent.
      malicious: bool `(n,)`.
      fields: by name `(layers, n)`: the weight, and whatever else the rule's diagnostics have of each client and layer.
        Layers are in the order of the flattened variables; NaN in those that the rule does not see.
    """

    client: jax.Array
    malicious: jax.Array
    fields: dict[str, jax.Array]


class RoundMetrics(NamedTuple):
    """What one round reports, all on the device. Layers are in the order of the flattened variables.

    Attributes:
      train_loss: mean over the clients of the round, malicious ones included (they train honestly first).
      malicious: how many malicious clients took part.
      benign: how many benign ones.
      malicious_filtered: int32 `(layers,)`, how many malicious clients had weight 0 in each layer.
      benign_filtered: the same of benign ones.
      update_norm: of what the rule returned.
      step_waste: steps of local training that were computed over those that were needed, since clients that train
        together all take as many as the longest of them.
      assumed_malicious: the f that the rule used after its own limit, -1 if it has none.
      filtering: None unless it is recorded.
    """

    train_loss: jax.Array
    malicious: jax.Array
    benign: jax.Array
    malicious_filtered: jax.Array
    benign_filtered: jax.Array
    update_norm: jax.Array
    step_waste: jax.Array
    assumed_malicious: jax.Array
    filtering: Filtering | None
