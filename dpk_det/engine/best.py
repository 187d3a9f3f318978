"""The best checkpoint of a training, and its end where nothing improves any more."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm

from dpk_det.engine.metric_names import check_metric
from dpk_det.engine.resume.checkpoints import FINAL
from dpk_det.errors import UserError

BEST = "model_best"
"""Name of the file that holds the weights of the best evaluation."""


class NoMoreGain(SystemExit):
    """Ends a training early. It is no ``Exception``, so that nothing takes it for a failure."""


class BestHook(BestCheckpointer):
    """Saves the weights of each evaluation that is better than all before, and ends the training
    after some that are not.

    Detectron2's own forgets, when a training is resumed, what was best. Register it after the
    evaluation, on all ranks. The trainer must have ``save_weights(name)``.

    Args:
        period: steps from one evaluation to the next. metric: name of a figure, the higher the
            better. patience: evaluations without a new best after which the training ends; 0: it
            goes on to its end.
    """

    def __init__(self, period: int, metric: str, patience: int = 0) -> None:
        super().__init__(period, self, metric, file_prefix=BEST)
        self.metric, self.patience = metric, patience
        self.waited = 0

    def save(self, name: str, iteration: int) -> None:
        """Save, for the base class, whose checkpointer this hook is."""
        self.trainer.save_weights(name)

    def _best_checking(self) -> None:
        if comm.is_main_process():  # others have no figures
            before = self.best_iter
            super()._best_checking()
            self.waited = 0 if self.best_iter != before else self.waited + 1

    def after_step(self) -> None:
        """Look at the evaluation of this step, if there was one.

        Raises:
            NoMoreGain: on all ranks, when there was none better for too long.
        """
        trainer, number = self.trainer, self.trainer.iter + 1
        super().after_step()
        if not self.patience or number % self._period or number == trainer.max_iter:
            return
        if comm.all_gather(self.waited)[0] >= self.patience:
            trainer.save_checkpoint(FINAL)
            raise NoMoreGain

    @property
    def best(self) -> dict[str, Any]:
        """What was best: metric, value, and step; the last two None before an evaluation."""
        step = self.best_iter
        if step is not None:  # after the last step Detectron2 counts one more
            step = min(int(step) + 1, self.trainer.max_iter)
        return {"metric": self.metric, "value": self.best_metric, "step": step}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": self.best_metric, "iter": self.best_iter, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the checkpoint was."""
        self.best_metric, self.best_iter = state["value"], state["iter"]
        self.waited = state["waited"]


def check_best(cfg: CfgNode) -> None:
    """Check ``TEST.BEST_METRIC`` and ``TEST.PATIENCE`` of a config, its datasets registered.

    Raises:
        UserError: the metric is none that the evaluation gives, or there is no evaluation to wait
            for.
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
