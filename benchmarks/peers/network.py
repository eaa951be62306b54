"""The paper's CNN for MNIST in PyTorch, 1,663,370 parameters as `lasa_jax.models.cnn`, and what runners do with it."""

import numpy as np
import torch
from torch import nn

from benchmarks.peers.given import LEARNING_RATE, first_weights


class CNN(nn.Module):
    """Two 5x5 convolutions, each followed by max pooling and ReLU, and two dense layers with dropout 0.5 between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dense1 = nn.Linear(7 * 7 * 64, 512)
        self.dense2 = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(nn.functional.max_pool2d(self.conv1(x), 2))
        x = nn.functional.relu(nn.functional.max_pool2d(self.conv2(x), 2))
        x = nn.functional.relu(self.dense1(x.flatten(1)))
        return self.dense2(nn.functional.dropout(x, 0.5, training=self.training))


def first() -> CNN:
    """The global model before the first round."""
    model = CNN()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in first_weights().items()})
    return model


def train(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch: int) -> None:
    """One client's local training: SGD over its examples, once, in a new order."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for chosen in torch.randperm(len(labels)).split(batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()


@torch.no_grad()
def loss(model: nn.Module, inputs: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy, without dropout."""
    model.eval()
    pairs = zip(torch.from_numpy(inputs).split(250), torch.from_numpy(labels).split(250), strict=True)
    return sum(float(nn.functional.cross_entropy(model(x), y, reduction="sum")) for x, y in pairs) / len(labels)
