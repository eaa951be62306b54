"""The round in ByzFL: its `Client` and `Server` with FedAvg's exchange of weights and `Average`, one client after another.

https://byzfl.epfl.ch. ByzFL makes a model by the name of a class in its own file of models, so the CNN is put there.
"""

import torch
from byzfl import Client, Server
from byzfl.fed_framework import models
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import given, network


def main() -> None:
    """Prints the line of JSON."""
    work = given.parse()
    data = given.examples(work)
    models.CNN = network.CNN
    sgd = {
        "optimizer_name": "SGD",
        "learning_rate": given.LEARNING_RATE,
        "weight_decay": 0.0,
        "milestones": [1_000_000],  # the learning rate stays
        "learning_rate_decay": 1.0,
    }
    common = {"model_name": "CNN", "device": "cpu", **sgd}

    def loader(inputs: torch.Tensor, labels: torch.Tensor) -> DataLoader:
        return DataLoader(TensorDataset(inputs, labels), batch_size=work.batch, shuffle=True)

    clients = [
        Client(
            {
                **common,
                "loss_name": "CrossEntropyLoss",
                "LabelFlipping": False,
                "training_dataloader": loader(torch.from_numpy(inputs), torch.from_numpy(labels)),
                "momentum": 0.0,
                "nb_labels": 10,
                "store_per_client_metrics": False,
            }
        )
        for inputs, labels in zip(data.inputs, data.labels, strict=True)
    ]
    test = loader(*map(torch.from_numpy, data.evaluated))  # a server must have one; it is not asked to test
    average = {"aggregator_info": {"name": "Average", "parameters": {}}, "pre_agg_list": []}
    server = Server({**common, **average, "test_loader": test})
    server.model.load_state_dict(network.first().state_dict())
    before = network.loss(server.model, *data.evaluated)
    clock = given.Clock()
    clock.note()
    for _ in range(given.WARM_UP + work.rounds):
        start = server.get_dict_parameters()
        for client in clients:
            client.set_model_state(start)
            client.compute_model_update(work.steps)
        server.update_model_with_weights([client.get_flat_parameters() for client in clients])
        clock.note()
    after = network.loss(server.model, *data.evaluated)
    given.report(work, clock, before, after, ["byzfl", "torch"])


if __name__ == "__main__":
    main()
