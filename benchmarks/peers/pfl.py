"""The round in pfl-research: `FederatedAveraging` on a `SimulatedBackend`, the cohort divided over processes by `torchrun`.

https://apple.github.io/pfl-research. Examples lie in memory as its own `Dataset`, which its guide calls the fastest.
"""

import os

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers import given, network

NEVER = 1_000_000  # rounds between evaluations


class Trained(network.CNN):
    """The CNN with the loss and the metrics that pfl asks a model for."""

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> torch.Tensor:
        self.train(not eval)
        return torch.nn.functional.cross_entropy(self(inputs), labels)

    @torch.no_grad()
    def metrics(self, inputs: torch.Tensor, labels: torch.Tensor, eval: bool = True) -> dict[str, Weighted]:
        return {"loss": Weighted(float(self.loss(inputs, labels, eval)) * len(labels), len(labels))}


class Timer(TrainingProcessCallback):
    """Notes the end of each round."""

    def __init__(self, clock: given.Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        self.clock.note()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.clock.note()
        return False, Metrics()


def main() -> None:
    """Prints the line of JSON, in the first of the processes."""
    work = given.parse()
    data = given.examples(work)

    def client(user: int) -> Dataset:
        return Dataset(raw_data=[torch.from_numpy(data.inputs[user]), torch.from_numpy(data.labels[user])])

    users = FederatedDataset(client, get_user_sampler("minimize_reuse", list(range(work.clients))))
    module = Trained()
    module.load_state_dict(network.first().state_dict())
    before = network.loss(module, *data.evaluated)
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    clock = given.Clock()
    FederatedAveraging().run(
        backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=[]),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given.WARM_UP + work.rounds,
            evaluation_frequency=NEVER,
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=given.LEARNING_RATE, local_batch_size=work.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[Timer(clock)],
    )
    after = network.loss(module, *data.evaluated)
    if os.environ.get("RANK", "0") == "0":
        given.report(work, clock, before, after, ["pfl", "torch"])


if __name__ == "__main__":
    main()
