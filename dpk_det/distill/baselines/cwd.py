"""Channel-wise distillation, CWD (Shu et al., ICCV 2021, arXiv:2011.13256).

The authors' code is irfanICMLL/TorchDistiller on GitHub.

Shapes: B images, C channels, H x W cells.
"""

from torch import Tensor

from dpk_det.distill.arguments import Temperature, Weight
from dpk_det.distill.baselines.adapted import AdaptedDistiller
from dpk_det.distill.contract import Level, PairedMaps
from dpk_det.distill.registry import register_distiller
from dpk_det.distill.regression import channel_divergence


@register_distiller("cwd")
class CWD(AdaptedDistiller):
    """Treats channels as distributions over cells, and brings the student's to the teacher's.

    See :func:`~dpk_det.distill.regression.channel_divergence`. Loss: ``loss_cwd``, the sum over
    levels.

    Args:
        levels: What to distil.
        weight: Weight of the loss; 10 in mmrazor's detectors.
        temperature: Temperature of the softmax over cells; 1 in mmrazor's detectors.
    """

    name = "cwd"

    def __init__(
        self, levels: list[Level], *, weight: Weight = 10.0, temperature: Temperature = 1.0
    ) -> None:
        super().__init__(levels, weight)
        self.temperature = temperature

    def level_loss(self, pair: PairedMaps, out: Tensor) -> Tensor:
        """See the base."""
        return channel_divergence(out, pair.teacher, pair.cells, self.temperature)
