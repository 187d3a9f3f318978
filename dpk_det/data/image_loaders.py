"""Batches for classifiers: dicts of tensors, ``images`` (B, 3, S, S) uint8 and ``labels`` (B,)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import InferenceSampler
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms import v2

from dpk_det.data.image_sets import Place, find_place, read_images
from dpk_det.data.loader_workers import leave_signals_to_parent
from dpk_det.data.train_loader import (
    TrainLoader,
    as_it_is,
    choose_sampler,
    images_per_process,
    loader_seed,
)
from dpk_det.errors import UserError
from dpk_det.pairing.batches import flip_channels

Batch = dict[str, Tensor]


class ImagesInMemory(Dataset):
    """Small images, decoded once. A batch is gathered at once; each image is shifted and flipped.

    Args:
        images: (n, 3, S, S) uint8.
        labels: (n,).
        pad: black pixels around an image, from which a random window of S x S is cut.
        flip: mirror each image with probability 0.5.
    """

    def __init__(self, images: Tensor, labels: Tensor, pad: int = 0, flip: bool = False) -> None:
        self.images, self.labels = images, labels
        self.pad, self.flip = pad, flip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these indices; torch's loader calls this once per batch."""
        index = torch.as_tensor(indices)
        images = self.images[index]
        if self.pad or self.flip:
            images = shift_and_flip(images, self.pad, self.flip)
        return {"images": images, "labels": self.labels[index]}


def shift_and_flip(
    images: Tensor, pad: int, flip: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Pad images (B, 3, S, S), cut a window of S x S from each, and mirror half of them at random.

    This equals torchvision's ``RandomCrop(S, padding=pad)`` and ``RandomHorizontalFlip``. It draws
    separately for each image of a batch, which torchvision cannot do.
    """
    num, _, height, width = images.shape
    rows, columns = torch.randint(2 * pad + 1, (2, num, 1), generator=generator)
    rows, columns = rows + torch.arange(height), columns + torch.arange(width)
    if flip:
        mirrored = torch.rand(num, 1, generator=generator) < 0.5
        columns = columns.flip(1).where(mirrored, columns)
    padded = torch.nn.functional.pad(images, [pad] * 4).permute(0, 2, 3, 1)
    cut = padded[torch.arange(num).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
    return cut.permute(0, 3, 1, 2).contiguous()


class ImagesOnDisk(Dataset):
    """Images that are read when a batch needs them.

    Args:
        source: gives an image (3, H, W) and its class.
        transform: brings images to one size.
    """

    def __init__(self, source: Dataset, transform: Callable[[Tensor], Tensor]) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these indices."""
        pairs = [self.source[i] for i in indices]
        images = torch.stack([self.transform(image) for image, _ in pairs])
        return {"images": images, "labels": torch.tensor([label for _, label in pairs])}


def build_image_train_loader(cfg: CfgNode) -> TrainLoader:
    """Build a loader of endless batches of ``DATASETS.TRAIN``, as ``INPUT.IMAGES`` describes them.

    Every epoch has a new random order.

    Raises:
        UserError: if the processes cannot share ``SOLVER.IMS_PER_BATCH``, data are not named or not
            found, or ``DATALOADER``'s sampler is unknown or leaves no image.
    """
    batch_size = images_per_process(cfg)
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name what to train on.")
    dataset = _dataset(cfg, cfg.DATASETS.TRAIN, trains=True)
    return TrainLoader(
        dataset,
        choose_sampler(cfg, dataset),
        loader_seed(cfg),
        batch_size,
        num_workers=_num_workers(cfg),
        collate=_collate(cfg),
    )


def build_image_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """Build a loader of a dataset's images, each once, in order, shared by the processes.

    Raises:
        UserError: if data are not found.
    """
    dataset = _dataset(cfg, [name])
    return DataLoader(
        dataset,
        cfg.INPUT.IMAGES.BATCH_TEST,
        sampler=InferenceSampler(len(dataset)),
        num_workers=_num_workers(cfg),
        collate_fn=_collate(cfg),
        worker_init_fn=leave_signals_to_parent,
    )


def _num_workers(cfg: CfgNode) -> int:
    # images in memory are gathered faster than a worker would send them
    return 0 if cfg.INPUT.IMAGES.IN_MEMORY else cfg.DATALOADER.NUM_WORKERS


def _collate(cfg: CfgNode) -> Callable[[Batch], Batch]:
    return flip_channels if cfg.INPUT.FORMAT == "BGR" else as_it_is


def _dataset(cfg: CfgNode, names: Sequence[str], trains: bool = False) -> Dataset:
    node = cfg.INPUT.IMAGES
    places = tuple(find_place(name) for name in names)
    flips = cfg.INPUT.RANDOM_FLIP == "horizontal"
    if node.IN_MEMORY:
        images, labels = _decode(places, node.SIZE)
        if not trains:
            return ImagesInMemory(images, labels)
        return ImagesInMemory(images, labels, node.PAD, flips)
    if trains:
        steps = [v2.RandomResizedCrop(node.SIZE, antialias=True)]
        steps += [v2.RandomHorizontalFlip()] * flips
        return ImagesOnDisk(_join(places), v2.Compose(steps))
    return ImagesOnDisk(_join(places), fit_for_evaluation(cfg))


def fit_for_evaluation(cfg: CfgNode) -> Callable[[Tensor], Tensor]:
    """Return the transform of an image (3, H, W) to the size at which a classifier is evaluated."""
    node = cfg.INPUT.IMAGES
    return _fit(node.SIZE if node.IN_MEMORY else node.RESIZE_TEST, node.SIZE)


def _fit(shorter_side: int, size: int) -> Callable[[Tensor], Tensor]:
    return v2.Compose([v2.Resize(shorter_side, antialias=True), v2.CenterCrop(size)])


def _join(places: tuple[Place, ...]) -> Dataset:
    return ConcatDataset([read_images(*place) for place in places])


@lru_cache(maxsize=4)  # otherwise every evaluation would decode the images again
def _decode(places: tuple[Place, ...], size: int) -> tuple[Tensor, Tensor]:
    source = _join(places)
    fit = _fit(size, size)
    images = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.int64)
    for i, (image, label) in enumerate(source):
        images[i] = image if image.shape[1:] == (size, size) else fit(image)
        labels[i] = label
    return images, labels
