"""Base of the methods that compare the logits of heads for the same places."""

from torch import Tensor

from dpk_det.distill.contract import Distiller, Features, Logits, Targets


class LogitsDistiller(Distiller):
    """Gives a separate loss, ``loss_NAME_HEAD``, for each head that both networks have.

    The levels that it is built with are not used, because logits are not paired by level.
    """

    name: str
    takes_levels = False
    heads = frozenset({"roi", "dense", "image"})

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class; targets are not used, because regions and images have their own labels."""
        return {
            f"loss_{self.name}_{head}": self.head_loss(
                head, student.logits[head], teacher.logits[head]
            )
            for head in sorted(self.heads & student.logits.keys())
        }

    def head_loss(self, head: str, student: Logits, teacher: Logits) -> Tensor:
        """The loss of one head, weight included."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it compares.")
