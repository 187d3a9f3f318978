"""DPK's view of a level: its maps, its tokens, and the samples that CKA is measured on.

Shapes: B images, Cs and Ct channels, H x W cells, k x k cells per token, h x w tokens.
"""

from torch import Tensor
from torch.nn import functional as F

from dpk_det.distill.contract import PairedMaps
from dpk_det.distill.dpk.cka import MIN_SAMPLES
from dpk_det.distill.dpk.tokens import pad_to_tokens, token_grid
from dpk_det.distill.padding import valid_mask
from dpk_det.errors import UserError

Samples = tuple[Tensor, Tensor, Tensor | None, int]
"""The arguments of :func:`~dpk_det.distill.dpk.cka.hsic_terms`."""


class LevelView:
    """One level: its maps, and which of its tokens are valid.

    Args:
        pair: the maps of the level.
        patch: k.

    Attributes:
        tokens: (B, h, w) bool, false for padding; None if no token is padding.
        extents: (rows, columns) of valid tokens of each image.
    """

    def __init__(self, pair: PairedMaps, patch: int) -> None:
        grid = token_grid(*pair.student.shape[-2:], patch)
        self.pair = pair
        self.patch = patch
        self.extents = [token_grid(h, w, patch) for h, w in pair.extents]
        self.tokens = valid_mask(self.extents, grid, pair.student.device)

    def means(self) -> tuple[Tensor, Tensor]:
        """Each token's mean features in student and teacher, (B, Cs, h, w) and (B, Ct, h, w)."""
        student, cells = self.pair.student, self.pair.cells
        x, y = self._mean(student), self._mean(self.pair.teacher)
        size = student.shape[-2:]
        if cells is None and not any(side % self.patch for side in size):
            return x, y
        # A token at the border averages only its valid cells. With the padding's zeros, both
        # networks' features would shrink alike there, which CKA would count as similarity.
        cells = student.new_ones(1, 1, *size) if cells is None else cells.unsqueeze(1)
        share = self._mean(cells).clamp(min=1e-6)
        return x / share, y / share

    def _mean(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(pad_to_tokens(x.detach().float(), self.patch), self.patch)

    def to_cells(self, tokens: Tensor) -> Tensor:
        """Spread a value per token, (B, h, w), over the token's cells, (B, H, W)."""
        height, width = self.pair.student.shape[-2:]
        for axis in (1, 2):
            tokens = tokens.repeat_interleave(self.patch, axis)
        return tokens[:, :height, :width]


def of_tokens(view: LevelView) -> Samples:
    """Take each token of each image as a sample."""
    x, y = (z.permute(0, 2, 3, 1).flatten(0, 2) for z in view.means())
    valid = None if view.tokens is None else view.tokens.flatten()
    return x, y, valid, sum(h * w for h, w in view.extents)


def of_images(view: LevelView) -> Samples:
    """Take each image as a sample: all tokens in the corner that all images of the batch cover.

    Raises:
        UserError: when there are too few images to measure.
    """
    # elsewhere padded images have zeros in both networks, which would count as similarity
    h, w = (min(sides) for sides in zip(*view.extents, strict=True))
    x, y = (z[..., :h, :w].flatten(1) for z in view.means())
    if len(x) < MIN_SAMPLES:
        raise UserError(
            f"CKA of images needs {MIN_SAMPLES} images a process but got {len(x)}: raise "
            "SOLVER.IMS_PER_BATCH or choose DISTILL.DPK.CKA_OF tokens."
        )
    return x, y, None, len(x)


SAMPLES = {"tokens": of_tokens, "images": of_images}
