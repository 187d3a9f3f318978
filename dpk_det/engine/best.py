"""Save the best checkpoint of a training, and end a training that no longer improves."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm

from dpk_det.engine.metric_names import check_metric
from dpk_det.engine.resume.checkpoints import FINAL
from dpk_det.errors import UserError

BEST = "model_best"
"""Name of the file with the weights of the best evaluation."""


class NoMoreGain(SystemExit):
    """Ends a training early. It is no ``Exception``, so no code treats it as a failure."""


class BestHook(BestCheckpointer):
    """Saves the weights of each evaluation that is better than all earlier evaluations, and ends
    the training after too many evaluations without a new best.

    Detectron2's hook forgets the best value when a training is resumed. Register this hook after
    the evaluation, on all ranks. The trainer must have ``save_weights(name)``.

    Args:
        period: steps from one evaluation to the next.
        metric: the name of a figure for which higher is better.
        patience: evaluations without a new best after which the training ends; 0: never.
    """

    def __init__(self, period: int, metric: str, patience: int = 0) -> None:
        super().__init__(period, self, metric, file_prefix=BEST)
        self.metric, self.patience = metric, patience
        self.waited = 0
        self._compared = -1

    def save(self, name: str, iteration: int) -> None:
        """Save the weights. The base class calls this, because this hook is its checkpointer."""
        self.trainer.save_weights(name)

    def _best_checking(self) -> None:
        if comm.is_main_process():  # other ranks have no figures
            before = self.best_iter
            super()._best_checking()
            self.waited = 0 if self.best_iter != before else self.waited + 1

    def after_step(self) -> None:
        """Compare the evaluation of this step, if the step has one.

        Raises:
            NoMoreGain: on all ranks, when ``patience`` evaluations brought no new best.
        """
        trainer, number = self.trainer, self.trainer.iter + 1
        if trainer.iter != self._compared:  # the evaluation of a resumed step is repeated
            super().after_step()
            self._compared = trainer.iter
        if not self.patience or number % self._period or number == trainer.max_iter:
            return
        if comm.all_gather(self.waited)[0] >= self.patience:
            trainer.save_checkpoint(FINAL)
            raise NoMoreGain

    @property
    def best(self) -> dict[str, Any]:
        """Return the best metric, value and step. Without an evaluation, the last two are None."""
        step = self.best_iter
        if step is not None:  # after the last step Detectron2's counter is one higher
            step = min(int(step) + 1, self.trainer.max_iter)
        return {"metric": self.metric, "value": self.best_metric, "step": step}

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save in a checkpoint."""
        return {
            "value": self.best_metric,
            "iter": self.best_iter,
            "waited": self.waited,
            "compared": self._compared,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best_metric, self.best_iter = state["value"], state["iter"]
        self.waited, self._compared = state["waited"], state.get("compared", -1)


def check_best(cfg: CfgNode) -> None:
    """Check ``TEST.BEST_METRIC`` and ``TEST.PATIENCE`` of a config with registered datasets.

    Raises:
        UserError: when the evaluation does not give the metric, when ``TEST.EVAL_PERIOD`` is 0, or
            when ``TEST.PATIENCE`` is set without a metric.
    """
    node = cfg.TEST
    if not node.BEST_METRIC:
        if node.PATIENCE:
            raise UserError(
                f"TEST.PATIENCE is {node.PATIENCE}, but nothing says what is to improve: set "
                "TEST.BEST_METRIC to a figure such as bbox/AP."
            )
        return
    check_metric(cfg, node.BEST_METRIC, "TEST.BEST_METRIC")
    if not node.EVAL_PERIOD:
        raise UserError(
            "TEST.BEST_METRIC compares evaluations, and TEST.EVAL_PERIOD is 0: set it to the steps "
            "from one to the next."
        )
