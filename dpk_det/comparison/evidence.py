"""Evidence: what trainings came to, kept apart from their weights, where a repository can hold it.

A comparison that goes on elsewhere, or later, takes up what is kept and trains only the rest.
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
    """A folder that has, for each finished training, a folder with its config and its figures.

    Attributes:
        folder: ``NAME/config.yaml`` and ``NAME/results.json`` of each run, as the run left them,
            and the ``step_times.json`` by which controls of equal time were made.
    """

    folder: Path

    def restore_step_times(self, output: Path) -> None:
        """Put the step times that are kept into the folder of a report that has none."""
        _copy(self.folder / STEP_TIMES, output / STEP_TIMES)

    def restore(self, runs: Iterable[Run]) -> None:
        """Put what is kept into the folders of runs that have not begun."""
        for run in runs:
            kept = self.folder / run.name
            if (kept / run.results_file).is_file() and not (run.folder / _CONFIG).exists():
                # the figures last: what is there by then is whole
                _copy(kept / _CONFIG, run.folder / _CONFIG)
                _copy(kept / run.results_file, run.folder / run.results_file)

    def keep(
        self, runs: Iterable[Run], output: Path, say: Callable[[str], None] = lambda line: None
    ) -> None:
        """Keep what finished runs came to. What is kept already stays as it is.

        Args:
            runs: some may be unfinished. output: folder of the report.
            say: gets a line where a run that was made again has other figures than those kept.

        Raises:
            UserError: when a file cannot be written, or one of a run is damaged.
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
