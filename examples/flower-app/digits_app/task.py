"""The model, the data, and how a client trains."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18
from torchvision.transforms.v2 import Compose, Lambda, Normalize, Resize

MEAN, STD = (0.305,) * 3, (0.376,) * 3
SHAPE = (3, 32, 32)


def build_model():
    return resnet18(num_classes=10)


def load_data(partition_id, num_partitions, batch_size, test=False):
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    transform = Compose(
        [Resize(32), Lambda(lambda x: x.expand(-1, 3, -1, -1)), Normalize(MEAN, STD)]
    )
    share = slice(partition_id + (num_partitions if test else 0), None, 4 * num_partitions)
    dataset = TensorDataset(transform(images[share]), torch.from_numpy(digits.target[share]))
    return DataLoader(dataset, batch_size, shuffle=not test, drop_last=not test)


def train(model, loader, optimizer):
    model.train()
    steps, total = 0, 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        steps, total = steps + 1, total + loss.item()
    return steps, total / steps


@torch.no_grad()
def test(model, loader):
    model.eval()
    hits = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return hits / len(loader.dataset)
