"""Training data as a function of the step: which images it sees, and how they are augmented.

All processes share one endless stream of images. It is dealt out to them in turn, and each process
makes batches of its images. Order and augmentation depend only on a seed, the step and the rank,
not on the number of data loader workers, other users of random numbers, or a restart. To begin at a
later step, the loader skips earlier batches as lists of indices, without reading an image.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from dpk_det.architectures import classifies
from dpk_det.data.loader_workers import leave_signals_to_parent
from dpk_det.errors import UserError
from dpk_det.random_state import seeded


@dataclass(frozen=True)
class Place:
    """The position of a training in its data.

    Attributes:
        seed: of order and augmentation.
        step: at this step the training continues the stream at ``position``.
        position: index of the image, counted over all processes. Both are 0 unless the training
            was resumed with another number of processes or images per step.
    """

    seed: int
    step: int = 0
    position: int = 0


def as_it_is(batch: Any) -> Any:
    """Return the batch unchanged. A lambda could not be sent to workers that are not forked."""
    return batch


@dataclass(eq=False, repr=False)
class TrainLoader:
    """Endless batches from any step on. Set ``place`` and ``step`` before taking the first batch.

    Args:
        dataset: gives an image by its index, or a batch by ``__getitems__``.
        make_sampler: makes one of Detectron2's training samplers from a seed.
        seed: of order and augmentation, the same in all processes.
        batch_size: images of this process per step.
        groups: 0 or 1 for each image; a batch has images of one group only. None: no groups.
        num_workers: number of processes that load.
        collate: makes a batch from the dataset's output; by default it changes nothing.

    Attributes:
        place: position in the data.
        step: step of the first batch.
        images_per_step: images of all processes per step.
        num_images: images in the dataset.
    """

    dataset: Dataset
    make_sampler: Callable[[int], Any]
    seed: InitVar[int]
    batch_size: int
    groups: Sequence[int] | None = None
    num_workers: int = 0
    collate: Callable[[Any], Any] = as_it_is

    def __post_init__(self, seed: int) -> None:
        self.place, self.step = Place(seed), 0
        self.images_per_step = self.batch_size * comm.get_world_size()
        self.num_images = len(self.dataset)

    def images_before(self, step: int) -> int:
        """Return the position in the stream at a step."""
        return self.place.position + (step - self.place.step) * self.images_per_step

    def __iter__(self) -> Iterator[Any]:
        # made with the first batch, so that a resumed training can set its place before
        yield from DataLoader(
            _Seeded(self.dataset),
            batch_sampler=self._batches(),
            num_workers=self.num_workers,
            collate_fn=self.collate,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),  # otherwise torch's own draws the workers' seed
        )

    def _batches(self) -> Iterator[tuple[tuple[int, int, int], list[int]]]:
        place, rank = self.place, comm.get_rank()
        stream = self.make_sampler(place.seed)._infinite_indices()
        own = islice(stream, place.position + rank, None, comm.get_world_size())
        past = self.step - place.step
        if self.groups is None:
            batches = _in_order(islice(own, past * self.batch_size, None), self.batch_size)
        else:
            batches = islice(_in_groups(own, self.groups, self.batch_size), past, None)
        for step, batch in enumerate(batches, self.step):
            yield (place.seed, step, rank), batch


def _in_order(indices: Iterator[int], size: int) -> Iterator[list[int]]:
    while True:
        yield list(islice(indices, size))


def _in_groups(indices: Iterator[int], groups: Sequence[int], size: int) -> Iterator[list[int]]:
    # like Detectron2's AspectRatioGroupedDataset, but with indices in place of loaded images
    waiting: tuple[list[int], list[int]] = [], []
    for index in indices:
        batch = waiting[groups[index]]
        batch.append(index)
        if len(batch) == size:
            yield batch[:]
            batch.clear()


class _Seeded(Dataset):
    """Loads each batch with its own seed for random numbers."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitems__(self, batch: tuple[tuple[int, ...], list[int]]) -> Any:
        key, indices = batch
        with seeded(*key):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(indices)
            return [self.dataset[i] for i in indices]


def loader_seed(cfg: CfgNode) -> int:
    """Return the seed of a training's data, derived from ``SEED``, or drawn if that is negative."""
    if cfg.SEED < 0:
        return int(comm.shared_random_seed())
    # Detectron2's samplers draw this number at the start of a training with that seed
    return int(np.random.RandomState(cfg.SEED).randint(2**31))


def images_per_process(cfg: CfgNode) -> int:
    """Return this process's share of ``SOLVER.IMS_PER_BATCH``.

    Raises:
        UserError: if the processes cannot share it equally.
    """
    num_processes = comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % num_processes or cfg.SOLVER.IMS_PER_BATCH < 1:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {num_processes} processes "
            "cannot share: make it a multiple of their number."
        )
    return cfg.SOLVER.IMS_PER_BATCH // num_processes


def build_detection_train_loader(cfg: CfgNode, mapper: Callable | None = None) -> TrainLoader:
    """Build a loader of endless batches of ``DATASETS.TRAIN``, like Detectron2's own loader.

    Args:
        mapper: turns a dataset's dict into the model's; by default Detectron2's ``DatasetMapper``.

    Raises:
        UserError: if the processes cannot share ``SOLVER.IMS_PER_BATCH``, or
            ``DATALOADER``'s sampler is unknown or leaves no image.
    """
    batch_size = images_per_process(cfg)
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    make_sampler = choose_sampler(cfg, records)
    groups = _aspect_groups(records) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
    if isinstance(records, list):
        records = DatasetFromList(records, copy=False)
    return TrainLoader(
        MapDataset(records, mapper or DatasetMapper(cfg, is_train=True)),
        make_sampler,
        loader_seed(cfg),
        batch_size,
        groups,
        cfg.DATALOADER.NUM_WORKERS,
    )


def choose_sampler(cfg: CfgNode, records: Sequence[Any]) -> Callable[[int], Any]:
    """Return a function that makes the sampler ``DATALOADER.SAMPLER_TRAIN`` from a seed.

    Args:
        records: the images to choose from. RepeatFactorTrainingSampler needs Detectron2's dicts.

    Raises:
        UserError: if the name is unknown, or the sampler does not work with these records.
    """
    node, num = cfg.DATALOADER, len(records)
    logging.getLogger("dpk_det").info("Using training sampler %s", node.SAMPLER_TRAIN)
    if node.SAMPLER_TRAIN == "TrainingSampler":
        return lambda seed: TrainingSampler(num, seed=seed)
    if node.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return _subset_sampler(num, node.RANDOM_SUBSET_RATIO)
    if node.SAMPLER_TRAIN == "RepeatFactorTrainingSampler" and not classifies(cfg):
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, node.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    others = "" if classifies(cfg) else "RepeatFactorTrainingSampler, "
    raise UserError(
        f"DATALOADER.SAMPLER_TRAIN is {node.SAMPLER_TRAIN}: choose TrainingSampler, {others}or "
        "RandomSubsetTrainingSampler."
    )


def _subset_sampler(num: int, ratio: float) -> Callable[[int], Any]:
    if not (0 < ratio <= 1 and int(num * ratio)):
        raise UserError(
            f"DATALOADER.RANDOM_SUBSET_RATIO is {ratio}: of {num} images that must leave one at "
            "least, and at most all; choose a share up to 1."
        )
    # the seed of the order is that of Detectron2's own loader; the subset needs another seed
    return lambda seed: RandomSubsetTrainingSampler(
        num, ratio, seed_shuffle=seed, seed_subset=seed + 1
    )


def _aspect_groups(records: Sequence[dict]) -> bytes:
    """Return 0 for each image that is wider than high, otherwise 1."""
    return bytes(not width > height for width, height in map(_size, records))


def _size(record: dict[str, Any]) -> tuple[int, int]:
    if "width" in record and "height" in record:
        return record["width"], record["height"]
    height, width = detection_utils.read_image(record["file_name"]).shape[:2]
    return width, height
