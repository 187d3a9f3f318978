"""Detectron2's dataset mapper, with errors that name the unreadable image."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from dpk_det.data.image_files import find_problem, image_of
from dpk_det.errors import UserError


class NamingMapper:
    """Wraps a mapper, and names the image if the mapper fails.

    Args:
        mapper: turns a dataset's dict, with ``file_name``, into the model's dict.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.mapper = mapper

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> "NamingMapper":
        """Wrap Detectron2's own mapper."""
        return cls(DatasetMapper(cfg, is_train))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return what the wrapped mapper returns.

        Raises:
            UserError: names the file if the image, or the image of its pixels' classes, cannot be
                read. Other exceptions pass unchanged.
        """
        try:
            return self.mapper(record)
        except Exception as e:
            for key in ("file_name", "sem_seg_file_name"):
                problem = key in record and find_problem(image_of(record, key))
                if problem:
                    raise UserError(problem) from e
            raise
