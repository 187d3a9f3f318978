"""Dynamic Prior Knowledge (Qiu et al., ICLR 2023, arXiv:2206.06067).

Part of the teacher's map is fed in as prior knowledge: at a share of positions the student's tokens
are replaced by the teacher's, a transformer completes the hybrid, and the result is regressed onto
the teacher's map. The share follows the feature gap, ``1 - CKA``. docs/method.md has the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dpk_det.distill.arguments import Share, Steps, Weight
from dpk_det.distill.contract import Distiller, Features, Level, Targets
from dpk_det.distill.dpk.cka import MinibatchCKA
from dpk_det.distill.dpk.completion import HybridCompletion, TransformerShape
from dpk_det.distill.dpk.ratio import RATIOS
from dpk_det.distill.dpk.samples import SAMPLES, LevelView
from dpk_det.distill.registry import register_distiller
from dpk_det.distill.regression import LOSSES, TARGETS
from dpk_det.errors import UserError, find

FORMS: dict[str, dict[str, Any]] = {
    "shortcut": {
        "shortcut": True,
        "target": "standard",
        "grouped": True,
        "cka_every": 4,
        "encoder_depth": 0,
    },
    "paper": {
        "shortcut": False,
        "target": "raw",
        "grouped": False,
        "cka_every": 1,
        "encoder_depth": 1,
    },
}
"""What a form stands for, where an argument does not say otherwise."""

POSITIONS = {"all": False, "student": True}


@dataclass(frozen=True)
class GapMeasurement:
    """How the gap between student and teacher is measured, by CKA.

    Attributes:
        cka_of: What a sample of CKA is: "tokens", or "images" (the tokens that all images of a
            batch have; the batch of each process must have 4 images).
        cka_window: Steps that the running CKA looks back on; 1: each step stands alone.
        cka_every: Steps from one measurement of CKA to the next; None: as the form says.
    """

    cka_of: str = "tokens"
    cka_window: Steps = 50
    cka_every: Steps | None = None


@register_distiller("dpk")
class DPK(Distiller):
    """The DPK distiller.

    Losses: ``loss_dpk``, the mean over levels of the mean squared error over valid cells.
    Metrics, per level: ``dpk/ratio_NAME``, ``dpk/cka_NAME`` and ``dpk/loss_NAME`` (unweighted).

    Args:
        levels: What to distil.
        weight: Weight of loss_dpk in the total loss.
        level_weights: Factor of each level's error before the mean, finest level first; none: 1.
        form: "shortcut": the student's map is added, targets are standardised, tokens are grouped,
            CKA is measured every 4 steps and the transformer has no encoders; "paper": none of the
            five. Each can be chosen by its own argument too.
        shortcut: Add the student's map to what the transformer makes, as it is where both have the
            same channels and else through a 1 x 1 convolution. The transformer then learns what the
            student's map lacks, and the student is drawn to the teacher's very channels, which
            inherited heads understand. Not in the paper. None: as the form says.
        target: What the completed map is compared with. "raw": the teacher's map; "relative": the
            same, and the error is divided by the map's variance over the batch, so that the loss is
            alike for all teachers and levels; "standard": the map with each channel brought to
            mean 0 and deviation 1 over the batch, and so is the student's map in the shortcut,
            which leaves the student its own scale. With inherited heads "raw" and the loss "cwd"
            did best. None: as the form says.
        grouped: Embed tokens of k x k cells and expand them by convolutions of k groups, with a
            k-th of the weights and arithmetic. Not in the paper. None: as the form says.
        loss: How the two are compared: "mse", the mean squared error; "cwd", each channel as a
            distribution over cells, where offsets of channels do not count but peaks do. CWD's
            weight of 10 is for the sum over levels; here it is the mean: 50 is as much on five.
        positions: The cells whose error counts: "all", or "student", those of tokens that did not
            take the prior.
        prior: Give the teacher's tokens as prior knowledge. False is the paper's ablation: learned
            blanks stand in their place and the student completes itself.
        ratio: Schedule of the prior ratio: "gap" (1 - CKA), "fixed", or falling from 1 to 0 with
            the training's progress: "linear", "cosine", "exponential".
        ratio_fixed: The ratio of the fixed schedule. One token of each image always takes the
            prior, and one never does.
        mask: Which tokens take the prior: "random", "block" (a square of neighbours), "grid" (an
            even spread).
        transformer: Size of encoders and decoder. gap: How the gap is measured.

    Raises:
        UserError: for an unknown name, or numbers that do not fit.
    """

    def __init__(
        self,
        levels: list[Level],
        *,
        weight: Weight = 12.0,
        level_weights: Sequence[Weight] = (),
        form: str = "shortcut",
        shortcut: bool | None = None,
        target: str | None = None,
        grouped: bool | None = None,
        loss: str = "mse",
        positions: str = "all",
        prior: bool = True,
        ratio: str = "gap",
        ratio_fixed: Share = 0.5,
        mask: str = "random",
        transformer: TransformerShape = TransformerShape(),
        gap: GapMeasurement = GapMeasurement(),
    ) -> None:
        super().__init__(levels)
        chosen = self.settle(
            {
                "form": form,
                "shortcut": shortcut,
                "target": target,
                "grouped": grouped,
                "cka_every": gap.cka_every,
                "encoder_depth": transformer.encoder_depth,
            }
        )
        transformer = replace(transformer, encoder_depth=chosen["encoder_depth"])
        self.weight = weight
        self.level_weights = _weights_of(levels, level_weights)
        self.schedule = find(RATIOS, ratio, "ratio schedule")
        self.ratio_fixed = ratio_fixed
        self.target = find(TARGETS, chosen["target"], "target")
        self.loss = find(LOSSES, loss, "loss of DPK")
        self.errs_at_student = find(POSITIONS, positions, "choice of positions")
        self.sample = find(SAMPLES, gap.cka_of, "sample of CKA")
        self.cka = MinibatchCKA(len(levels), gap.cka_window, chosen["cka_every"])
        self.completions = nn.ModuleDict(
            {
                level.student: HybridCompletion(
                    level,
                    transformer,
                    grouped=chosen["grouped"],
                    mask=mask,
                    prior=prior,
                    shortcut=chosen["shortcut"],
                    standard=chosen["target"] == "standard",
                )
                for level in levels
            }
        )

    @classmethod
    def settle(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in what the form says of arguments that are None or absent."""
        implied = find(FORMS, arguments.get("form", "shortcut"), "form of DPK")
        return {**arguments, **{k: v for k, v in implied.items() if arguments.get(k) is None}}

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """See the class and :class:`~dpk_det.distill.contract.Distiller`; targets are not used."""
        views = [
            LevelView(p, self.completions[p.level.student].patch)
            for p in self.pairs(student, teacher)
        ]
        cka = self.cka.update(self.sample(view) for view in views)
        # Token counts are shapes, which the host must know. It knows the gap of the step before; to
        # ask for this step's would halt the device.
        ratios = self.schedule(self.cka.before(), self.progress, self.ratio_fixed).tolist()
        losses = []
        for view, ratio in zip(views, ratios, strict=True):
            pair = view.pair
            out, given = self.completions[pair.level.student](
                pair.student, pair.teacher, ratio, view.tokens, pair.cells
            )
            target, scale = self.target(pair.teacher.float(), pair.cells)
            cells = pair.cells
            if self.errs_at_student:
                own = ~view.to_cells(given)
                cells = own if cells is None else cells & own
            losses.append(scale * self.loss(out, target, cells))
        total = sum(w * loss for w, loss in zip(self.level_weights, losses, strict=True))
        given = torch.tensor(ratios).to(cka.device, non_blocking=True)
        self.metrics = {
            f"dpk/{what}_{view.pair.level.student}": value.detach()
            for what, values in (("ratio", given), ("cka", cka), ("loss", losses))
            for view, value in zip(views, values, strict=True)
        }
        return {"loss_dpk": self.weight * total / len(views)}


def _weights_of(levels: list[Level], given: Sequence[float]) -> tuple[float, ...]:
    if given and len(given) != len(levels):
        raise UserError(
            f"DPK has {len(given)} level_weights but learns on {len(levels)} levels "
            f"({', '.join(level.student for level in levels)}): give one each, or none."
        )
    if given and not any(given):
        raise UserError("DPK's level_weights are all 0: give one level more, or none a weight.")
    return tuple(given) or (1.0,) * len(levels)
