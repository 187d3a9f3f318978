"""Base of the methods that compare what heads say of the same places."""

from torch import Tensor

from dpk_det.distill.contract import Distiller, Features, Logits, Targets


class LogitsDistiller(Distiller):
    """Sums nothing: each head that both networks have gives a loss of its own, ``loss_NAME_HEAD``.

    The levels that it is built with are not used, because logits are not paired by level.
    """

    name: str
    takes_levels = False
    heads = frozenset({"roi", "dense", "image"})

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used, regions and images bring their labels along."""
        return {
            f"loss_{self.name}_{head}": self.head_loss(
                head, student.logits[head], teacher.logits[head]
            )
            for head in sorted(self.heads & student.logits.keys())
        }

    def head_loss(self, head: str, student: Logits, teacher: Logits) -> Tensor:
        """The loss of one head, weight included."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it compares.")
