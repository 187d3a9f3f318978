"""Evidence: configs and results of trainings, kept without weights so that a repository fits them.

A comparison that continues elsewhere, or later, restores this evidence and trains only the rest.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from dpk_det.comparison.equal_time import STEP_TIMES
from dpk_det.comparison.run import Run, describe
from dpk_det.files import write_whole

_CONFIG = "config.yaml"


@dataclass(frozen=True)
class Evidence:
    """A folder that holds the config and the results of each finished training.

    Attributes:
        folder: holds unchanged copies of each run's files as ``NAME/config.yaml`` and
            ``NAME/results.json``, and the ``step_times.json`` that defines the equal-time controls.
    """

    folder: Path

    def restore_step_times(self, output: Path) -> None:
        """Copy the kept step times into the folder of a report that has none."""
        _copy(self.folder / STEP_TIMES, output / STEP_TIMES)

    def restore(self, runs: Iterable[Run]) -> None:
        """Copy the kept files into the folders of runs that have not begun."""
        for run in runs:
            kept = self.folder / run.name
            if (kept / run.results_file).is_file() and not (run.folder / _CONFIG).exists():
                # Results are copied last, so that a run with results is complete.
                _copy(kept / _CONFIG, run.folder / _CONFIG)
                _copy(kept / run.results_file, run.folder / run.results_file)

    def keep(
        self, runs: Iterable[Run], output: Path, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Keep config and results of finished runs. Files that are already kept stay unchanged.

        Args:
            runs: runs to keep; unfinished runs are skipped.
            output: folder of the report.
            say: gets a line if the results of a repeated run differ from the kept results.

        Raises:
            UserError: when a file cannot be written, or a file of a run is damaged.
        """
        _copy(output / STEP_TIMES, self.folder / STEP_TIMES)
        for run in runs:
            if run.results is None:
                continue
            kept = Run(run.name, run.config, self.folder / run.name, results_file=run.results_file)
            _copy(run.folder / _CONFIG, kept.folder / _CONFIG)
            _copy(run.folder / run.results_file, kept.folder / run.results_file)
            if kept.figures != run.figures:
                say(
                    f"{run.name}: {describe(run)}, but {kept.folder} has {describe(kept)}, which "
                    "stays: remove that folder, and those of the students that learnt from it, to "
                    "keep the new figures"
                )


def _copy(source: Path, target: Path) -> None:
    if source.is_file() and not target.exists():
        write_whole(target, source.read_text())
