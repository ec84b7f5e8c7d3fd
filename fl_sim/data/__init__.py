"""Data sets: embedded, in a folder, or downloaded on first use."""

from fl_sim.data.dataset import Dataset, build_dataset
from fl_sim.data.downloads import cifar10, cifar100, fashion_mnist, flowers102, mnist
from fl_sim.data.embedded import mnist_5k, photo_places, photos
from fl_sim.data.folder import image_folder

__all__ = [
    "Dataset",
    "build_dataset",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "flowers102",
    "image_folder",
    "mnist",
    "mnist_5k",
    "photo_places",
    "photos",
]
