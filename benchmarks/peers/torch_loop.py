"""The round as a plain loop in PyTorch: one model, clients one after another, the average added up as they come."""

import torch

from benchmarks.peers import given, network


def main() -> None:
    """Prints the line of JSON."""
    work = given.parse()
    data = given.examples(work)
    inputs, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    model, local = network.first(), network.first()
    before = network.loss(model, *data.evaluated)
    clock = given.Clock()
    clock.note()
    for _ in range(given.WARM_UP + work.rounds):
        start = model.state_dict()
        total = {name: torch.zeros_like(x) for name, x in start.items()}
        for client in range(work.clients):
            local.load_state_dict(start)
            network.train(local, inputs[client], labels[client], work.batch)
            for name, x in local.state_dict().items():
                total[name] += x
        model.load_state_dict({name: x / work.clients for name, x in total.items()})
        clock.note()
    after = network.loss(model, *data.evaluated)
    given.report(work, clock, before, after, ["torch"])


if __name__ == "__main__":
    main()
