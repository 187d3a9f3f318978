"""Detectron2's dataset mapper, which names an image that it cannot take."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from dpk_det.data.image_files import find_problem, image_of
from dpk_det.errors import UserError


class NamingMapper:
    """Wraps a mapper from a dataset's dict to the model's.

    Args:
        mapper: is given each dict, with ``file_name``.
    """

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.mapper = mapper

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> "NamingMapper":
        """One around Detectron2's own."""
        return cls(DatasetMapper(cfg, is_train))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """What the mapper gives.

        Raises:
            UserError: naming the file, when the image or that of its pixels' classes cannot be
                read. Exceptions of other causes pass.
        """
        try:
            return self.mapper(record)
        except Exception as e:
            for key in ("file_name", "sem_seg_file_name"):
                problem = key in record and find_problem(image_of(record, key))
                if problem:
                    raise UserError(problem) from e
            raise
