"""Ranks teachers for a student: measures them first, then tries them by successive halving."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import mean, median

import msgspec
from detectron2.config import CfgNode
from scipy.stats import spearmanr
from tabulate import tabulate

from dpk_det.comparison.command import add_machine_arguments
from dpk_det.comparison.equal_time import apart, longer
from dpk_det.comparison.interrupts import Interrupts
from dpk_det.comparison.jobs import Slots, make_slots
from dpk_det.comparison.plan import plan
from dpk_det.comparison.run import diverged
from dpk_det.comparison.runs import train_all
from dpk_det.comparison.suite import Suite, read_suite, suite_name
from dpk_det.comparison.suite_configs import check_evaluations, load_configs
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.engine.start_gap import start_gap
from dpk_det.engine.step_time import step_times
from dpk_det.errors import UserError, find
from dpk_det.files import write_whole

RANKING = "teachers"
"""Name of the files that hold the ranking."""


@dataclass
class Candidate:
    """A teacher, and its measurements.

    Attributes:
        method: name of the method that learns from it.
        title: title of the teacher.
        own: the teacher's own figure.
        gap: mean over levels of 1 - CKA with the student as it starts.
        cost: time of a step of the method, over a step of the plain student.
        trials: steps of each trial to the figure that the student reached.
    """

    method: str
    title: str
    own: float | None = None
    gap: float | None = None
    cost: float | None = None
    trials: dict[int, float | None] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key, the higher the better: number of trials, then figure of the last trial."""
        last = [*self.trials.values()][-1:]
        return len(self.trials), last[0] if last and last[0] is not None else -1.0


def rank_teachers(
    suite: Suite,
    output: Path,
    slots: Sequence[Mapping[str, str]],
    seed: int = 101,
    share: float = 1 / 8,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
    interrupts: Interrupts | None = None,
) -> list[Candidate]:
    """Rank the teachers of a suite for the student that learns from them.

    Every method with a teacher is a candidate. Successive halving (Jamieson and Talwalkar, AISTATS
    2016): all candidates have a short training with a whole schedule; the better half has one of
    twice the steps, and so on. It ends when one candidate is left, or the next training would have
    more steps than the suite's. Finished trials are kept. A diverged trial counts as the worst.

    Args:
        suite: a suite with a baseline that learns from none of the teachers.
        output: folder for all files.
        slots: from :func:`~dpk_det.comparison.jobs.make_slots`.
        seed: seed of the trials.
        share: share of the suite's steps that the first trials have.
        only: names of the methods to rank; empty: all.
        say: gets the lines of progress.
        interrupts: tells when to stop.

    Returns:
        The candidates, best first.

    Raises:
        UserError: for a mistake in the suite, before any training; when there are fewer than two
            candidates, or two methods learn from one teacher; when a training failed without
            diverging.
        Stopped: when a signal came.
    """
    chosen = _candidates(suite, only)
    todo = plan(suite, output / "runs", [seed], only=[suite.baseline, *chosen])
    configs = load_configs(todo, trains=True)
    check_evaluations(todo, configs, True, say)
    given = [*todo.teachers.values(), *todo.evaluations.values()]
    train_all(given, Slots(slots), say, interrupts=interrupts)
    own = {name: todo.rows[name] for name in todo.rows if name not in todo.methods}
    for name, candidate in chosen.items():
        for run in own.get(suite.methods[name].teacher, {}).values():
            candidate.own = run.figures.get(suite.metric)
    say(f"Looking at {', '.join(chosen)}: a step's cost, and how far the student starts from them")
    runs = {name: todo.methods[name][seed] for name in (suite.baseline, *chosen)}
    taken = apart(step_times, runs, slots[0])
    gaps = apart(_gaps, {name: runs[name] for name in chosen}, slots[0])
    for name, candidate in chosen.items():
        candidate.cost = median(map(truediv, taken[name], taken[suite.baseline]))
        candidate.gap = mean(gaps[name].values())
    left = [*chosen.values()]
    train = partial(train_all, workers=Slots(slots), say=say, interrupts=interrupts)
    while len(left) > 1 and share <= 1:
        _try(suite, output, left, seed, share, configs, train)
        left = sorted(left, key=lambda x: x.rank, reverse=True)[: (len(left) + 1) // 2]
        share *= 2
    return sorted(chosen.values(), key=lambda x: x.rank, reverse=True)


def _candidates(suite: Suite, only: Sequence[str]) -> dict[str, Candidate]:
    for name in only:
        find(suite.methods, name, f"method in {suite.path}")
    learners = {
        name: method
        for name, method in suite.methods.items()
        if method.teacher is not None and (name in only if only else name != suite.baseline)
    }
    if len(learners) < 2:
        raise UserError(
            f"{suite.path} has {len(learners)} method(s) with a teacher to rank: give at least two."
        )
    teachers = [method.teacher for method in learners.values()]
    if twice := next((x for x in teachers if teachers.count(x) > 1), None):
        raise UserError(
            f"Several methods of {suite.path} learn from {twice}: say by --only which methods are "
            "tried, one for each teacher."
        )
    return {n: Candidate(n, suite.teachers[m.teacher].title) for n, m in learners.items()}


def _gaps(configs: Mapping[str, CfgNode]) -> dict[str, dict[str, float]]:
    return {name: start_gap(cfg) for name, cfg in configs.items()}


def _try(
    suite: Suite,
    output: Path,
    candidates: Sequence[Candidate],
    seed: int,
    share: float,
    configs: Mapping[str, CfgNode],
    train: Callable[..., None],
) -> None:
    """Train the student once with each candidate, for a share of its steps."""
    methods = {suite.baseline: suite.methods[suite.baseline]}
    names = {}
    for x in candidates:
        opts = longer(configs[x.method], share)
        opts["SOLVER.MAX_ITER"] = steps = max(opts["SOLVER.MAX_ITER"], 1)
        method, name = suite.methods[x.method], f"{x.method}-{steps}-steps"
        methods[name] = msgspec.structs.replace(method, name=name, opts={**method.opts, **opts})
        names[name] = (x, steps)
    tried = msgspec.structs.replace(suite, methods=methods)
    todo = plan(tried, output / "runs", [seed], only=names)
    students = {name: todo.methods[name][seed] for name in names}
    try:
        train([*todo.teachers.values(), *students.values()])
    except UserError:
        if not all(run.results is not None or diverged(run) for run in students.values()):
            raise
    for name, (x, steps) in names.items():
        run = students[name]
        x.trials[steps] = None if run.results is None else run.figures.get(suite.metric)


# ------------------------------------------------------------------ results


def ranking_table(ranking: Sequence[Candidate], metric: str) -> str:
    """Return a Markdown table, the best first."""
    rounds = max(len(x.trials) for x in ranking)
    lengths = next([*x.trials] for x in ranking if len(x.trials) == rounds)
    rows = [
        [
            place,
            x.title,
            x.method,
            _number(x.own, 1),
            _number(x.gap, 3),
            _number(x.cost, 2),
            *(_number(figure, 1) for figure in x.trials.values()),
        ]
        for place, x in enumerate(ranking, 1)
    ]
    trials = (f"{metric} after {steps:,} steps" for steps in lengths)
    heads = ["", "teacher", "method", f"its own {metric}", "gap at the start", "cost of a step"]
    return tabulate(rows, [*heads, *trials], tablefmt="github", disable_numparse=True)


def foretold(ranking: Sequence[Candidate], full: Mapping[str, float]) -> dict[str, float]:
    """Return how well each measurement predicts the figures of full trainings.

    Args:
        ranking: candidates, best first.
        full: method to the figure of its full trainings.

    Returns:
        Spearman's rank correlation of "own", "gap" (1: the smallest is best), "cost" and "rank",
        if all candidates have them; nothing for fewer than three candidates.
    """
    known = [x for x in ranking if x.method in full]
    figures = [full[x.method] for x in known]
    columns = {
        "own": [x.own for x in known],
        "gap": [None if x.gap is None else -x.gap for x in known],
        "cost": [x.cost for x in known],
        "rank": [-place for place, _ in enumerate(known)],
    }
    if len(known) < 3:
        return {}
    return {
        name: float(spearmanr(values, figures).statistic)
        for name, values in columns.items()
        if None not in values
    }


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; ``sys.argv`` when none is given."""
    parser = argparse.ArgumentParser(
        description="Rank the teachers of a suite for one student: by their own figure, by the gap "
        "to the student's start, by the cost of a step, and by short trials.",
        allow_abbrev=False,
    )
    parser.add_argument("suite", type=Path, help="YAML file with a method for each teacher")
    parser.add_argument(
        "--output", type=Path, help="where all goes (default: output/NAME OF THE SUITE-teachers)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="try only these")
    parser.add_argument("--seed", type=int, default=101, help="of the trials (default: 101)")
    parser.add_argument(
        "--share",
        type=float,
        default=1 / 8,
        help="of the suite's steps that the first trials have (default: 0.125)",
    )
    parser.add_argument(
        "--full",
        type=Path,
        metavar="RESULTS",
        help="results.json of the comparison of the same suite: say how well the ranking foretells",
    )
    add_machine_arguments(parser)
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """Run the command line; it stops at signals as the comparison does."""
    args = parse_args(argv)
    with exit_on_user_error(), Interrupts().taken() as interrupts:
        if not 0 < args.share <= 1:
            raise UserError(f"--share is {args.share}: write a number above 0, up to 1.")
        suite = read_suite(args.suite)
        output = args.output or Path("output") / f"{suite_name(args.suite)}-teachers"
        full = _full(args.full) if args.full else {}
        slots = make_slots(args.workers, args.threads, args.gpus)
        say = partial(print, flush=True)
        ranking = rank_teachers(
            suite, output, slots, args.seed, args.share, args.only, say, interrupts
        )
        text = ranking_table(ranking, suite.metric)
        found = foretold(ranking, full)
        if found:
            text += "\n\nRank correlation with the full result: " + ", ".join(
                f"{name} {value:.2f}" for name, value in found.items()
            )
        content = {"ranking": [asdict(x) for x in ranking], "foretold": found}
        write_whole(output / f"{RANKING}.json", json.dumps(content, indent=2) + "\n")
        write_whole(output / f"{RANKING}.md", text + "\n")
    print(f"{text}\n\nThe ranking is in {output / RANKING}.md.")


def _full(path: Path) -> dict[str, float]:
    try:
        methods = json.loads(path.read_bytes())["methods"]
        return {name: row["mean"] for name, row in methods.items() if row["mean"] is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(
            f"{path} is no results.json of a comparison ({' '.join(str(e).split())}): give --full "
            "the file that compare.py has left beside its report."
        ) from e
