"""Proposals from files, ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``."""

import pickle

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from dpk_det.checkpoint.arrays import load_arrays
from dpk_det.errors import UserError


def check_proposals(cfg: CfgNode) -> None:
    """Check that the files of proposals can be read and run no code.

    Detectron2 unpickles them, which would run whatever they hold.

    Raises:
        UserError: for the first file that is absent, or holds anything but arrays.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    for key in ("PROPOSAL_FILES_TRAIN", "PROPOSAL_FILES_TEST"):
        for path in cfg.DATASETS[key]:
            try:
                with PathManager.open(path, "rb") as file:
                    content = load_arrays(file)
            except (OSError, pickle.UnpicklingError) as e:
                raise UserError(
                    f"The proposals {path} of DATASETS.{key} cannot be read ({e}): give a file "
                    "that exists and holds only arrays."
                ) from e
            if not isinstance(content, dict):
                raise UserError(
                    f"The proposals {path} of DATASETS.{key} are a {type(content).__name__}: give "
                    "a file with a dict of ids, boxes and objectness_logits, as Detectron2 reads."
                )
