"""The demonstration: a teacher and its students, plain and distilled, and a report."""

from collections.abc import Sequence
from pathlib import Path

from dpk_det.data import dataset_sizes

from .report import PLOT, method_table, plot_prior
from .runs import Run, train_all
from .train import parse_args, setup

# a method's config file in the folder of configs -> its row in the table
TITLES = {
    "teacher": "teacher",
    "plain": "student, plain",
    "inherit": "student that inherits the teacher's heads",
    "dpk": "student that inherits, with DPK",
}


def demo(configs: Path, folder: Path, seeds: Sequence[int], workers: int, threads: int) -> str:
    """Train what is not trained yet, and write ``folder/report.md`` with its plot.

    One teacher, trained with the first seed, serves all students.

    Args:
        configs: folder that holds teacher.yaml, plain.yaml, inherit.yaml and dpk.yaml.
        folder: where the trainings and the report go.
        seeds: of the students; several tell a method's effect from chance.
        workers: trainings at a time. threads: CPU threads of each.

    Returns:
        The table of the report.

    Raises:
        UserError: when a training fails.
    """
    teacher = Run("teacher", str(configs / "teacher.yaml"), folder / "teacher", _seed(seeds[0]))
    weights = ("DISTILL.TEACHER.WEIGHTS", str(teacher.folder / "model_final.pth"))
    methods: dict[str, list[Run]] = {"teacher": [teacher]}
    # the plain student first, since it need not wait for the teacher; then the longest
    for method, opts, after in (
        ("plain", (), ()),
        ("dpk", weights, ("teacher",)),
        ("inherit", weights, ("teacher",)),
    ):
        methods[method] = [
            Run(
                f"{method} (seed {seed})",
                str(configs / f"{method}.yaml"),
                folder / f"{method}-seed{seed}",
                (*opts, *_seed(seed)),
                after,
            )
            for seed in seeds
        ]
    # drawn here, where the progress bar can be seen, and not by the first two trainings
    dataset_sizes(setup(parse_args(teacher.arguments)))
    train_all([run for runs in methods.values() for run in runs], workers, threads)

    table = method_table({title: methods[name] for name, title in TITLES.items()})
    plot_prior({"plain": methods["plain"][0], "dpk": methods["dpk"][0]}, folder / PLOT)
    (folder / "report.md").write_text(
        f"# A teacher and its students: {configs.name}\n\n"
        "All students have the same schedule and data, and a seed gives them the same start. "
        f"Seeds: {', '.join(map(str, seeds))}.\n\n{table}\n\n"
        f"Prior ratio and CKA of each level, and the losses, with seed {seeds[0]}; the total loss "
        f"of dpk includes loss_dpk:\n\n![prior ratio, CKA and losses]({PLOT})\n"
    )
    return table


def _seed(seed: int) -> tuple[str, str]:
    return ("SEED", str(seed))
