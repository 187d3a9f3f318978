"""Draws findings on images, and writes the drawings to complete files that replace no input."""

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer

from dpk_det.deploy.inputs import FileError, is_video
from dpk_det.errors import UserError
from dpk_det.files import whole_file, write_whole

LEGIBLE = 240
"""Least length in pixels of the shorter side of a classifier's drawing."""

Painter = Callable[[np.ndarray, Any], np.ndarray]
"""Returns a new image (H, W, 3) BGR: the given one with its findings drawn on it."""


def detection_painter(metadata: Metadata) -> Painter:
    """Return a painter of a detector's outputs on one image or on the frames of one video.

    It draws panoptic segments if the dataset has names for all of them, otherwise instances.
    """
    visualizer = VideoVisualizer(metadata)  # an image is a video of one frame

    def paint(image: np.ndarray, outputs: dict[str, Any]) -> np.ndarray:
        rgb = image[:, :, ::-1]
        if "panoptic_seg" in outputs and metadata.get("stuff_classes"):
            segments, info = outputs["panoptic_seg"]
            drawn = visualizer.draw_panoptic_seg_predictions(rgb, segments.to("cpu"), info)
        else:
            drawn = visualizer.draw_instance_predictions(rgb, outputs["instances"])
        return _as_bgr(drawn.get_image())

    return paint


def paint_classes(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return the image (H, W, 3) BGR with lines of text. Small images are enlarged to fit them."""
    scale = max(1, math.ceil(LEGIBLE / min(image.shape[:2])))
    visualizer = Visualizer(image[:, :, ::-1], scale=scale)
    if lines:
        corner = (2 / scale, 2 / scale)
        visualizer.draw_text("\n".join(lines), corner, color="w", horizontal_alignment="left")
    return _as_bgr(visualizer.output.get_image())


def _as_bgr(rgb: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rgb[:, :, ::-1])


def drawing_paths(files: Sequence[Path], root: Path, folder: Path) -> list[Path]:
    """Return the drawings' paths: in ``folder``, as the inputs lie in ``root``; videos as .mp4.

    Raises:
        UserError: if a drawing would replace an input.
    """
    # a.avi becomes a.avi.mp4; if another input has this name, one more .mp4 is added
    names = [file.relative_to(root) for file in files]
    taken = set(names)
    targets = []
    for name in names:
        target = name
        while is_video(name) and (target.suffix != ".mp4" or (target != name and target in taken)):
            target = target.with_name(f"{target.name}.mp4")
        taken.add(target)
        targets.append(folder / target)
    replaced = {os.path.realpath(file) for file in files} & {os.path.realpath(x) for x in targets}
    if replaced:
        raise UserError(
            f"The drawings would replace the input {min(replaced)}: choose another --output, or "
            "--no-drawings."
        )
    return targets


class Drawing(contextlib.ExitStack):
    """Writes one image to a file or, if frames per second are given, a video of all images.

    It is a context manager. At its end the file is complete, or absent after an exception.

    Args:
        path: path of the image, or of the video, which ends in .mp4.
        fps: frames per second of the video; None for an image.
    """

    def __init__(self, path: Path, fps: float | None) -> None:
        super().__init__()
        self.path, self.fps = path, fps
        self._video: cv2.VideoWriter | None = None

    def write(self, image: np.ndarray) -> None:
        """Add an image (H, W, 3) BGR.

        Raises:
            FileError: if OpenCV cannot write the image or video.
            UserError: if the disk is full or the folder is not writable.
        """
        try:
            written = self._write_image(image) if self.fps is None else self._write_frame(image)
        except cv2.error:
            written = False
        if not written:
            raise FileError(f"OpenCV cannot write its drawing {self.path}; try --no-drawings")

    def _write_image(self, image: np.ndarray) -> bool:
        done, data = cv2.imencode(self.path.suffix, image)
        if done:
            write_whole(self.path, data.tobytes())
        return done

    def _write_frame(self, image: np.ndarray) -> bool:
        if self._video is None:
            partial = self.enter_context(whole_file(self.path))
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._video = cv2.VideoWriter(str(partial), codec, self.fps, image.shape[1::-1])
            self.enter_context(_closed(self._video, partial))
        self._video.write(image)
        return self._video.isOpened()


@contextlib.contextmanager
def _closed(video: cv2.VideoWriter, path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        video.release()
    if not cv2.VideoCapture(str(path)).isOpened():  # OpenCV does not report a full disk
        raise OSError(errno.ENOSPC, "OpenCV left no whole video, perhaps for want of space")
