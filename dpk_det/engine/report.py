"""The report of an experiment: a table of methods over seeds, and curves of the prior."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tabulate import tabulate

from .runs import Run, read_metrics

PLOT = "prior.png"


def method_table(methods: Mapping[str, Sequence[Run]]) -> str:
    """A Markdown table with a row a method: AP and AP50 over seeds, parameters, seconds a step.

    Args:
        methods: a row's title to its finished runs, one a seed.
    """
    rows = []
    for title, runs in methods.items():
        results = [run.results for run in runs]
        aps, ap50s = ([r["results"]["bbox"][key] for r in results] for key in ("AP", "AP50"))
        steps = [r["seconds_per_step"] for r in results if r["seconds_per_step"]]
        rows.append(
            [
                title,
                spread(aps),
                spread(ap50s),
                ", ".join(f"{ap:.1f}" for ap in aps),
                f"{results[0]['parameters']:,}",
                f"{median(steps):.3f}" if steps else "",
            ]
        )
    headers = ["", "AP", "AP50", "AP of each seed", "parameters", "seconds a step"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def spread(values: Sequence[float]) -> str:
    """Mean and, for two values or more, standard deviation of a sample."""
    text = f"{mean(values):.1f}"
    return f"{text} ± {stdev(values):.1f}" if len(values) > 1 else text


def plot_prior(runs: Mapping[str, Run], path: Path) -> None:
    """Draw prior ratio and CKA of each level, and the losses, over the steps.

    Args:
        runs: label to run. Ratio and CKA are drawn of those that have them, losses of all.
        path: PNG file to write.
    """
    figure, (ratio_axes, cka_axes, loss_axes) = plt.subplots(1, 3, figsize=(15, 4))
    for label, run in runs.items():
        metrics = [m for m in read_metrics(run.folder) if "total_loss" in m]
        steps = [m["iteration"] + 1 for m in metrics]
        for name in metrics[-1]:
            method, slash, quantity = name.partition("/")
            what, _, level = quantity.partition("_")
            axes = {"ratio": ratio_axes, "cka": cka_axes}.get(what) if slash else None
            if axes is not None:
                axes.plot(steps, [m.get(name) for m in metrics], label=f"{method} {level}")
        for name in [n for n in metrics[-1] if n == "total_loss" or n.startswith("loss_dpk")]:
            loss_axes.plot(steps, [m.get(name) for m in metrics], label=f"{label}: {name}")
    for axes, title in ((ratio_axes, "prior ratio"), (cka_axes, "CKA"), (loss_axes, "loss")):
        axes.set(title=title, xlabel="step")
        if axes.has_data():
            axes.legend(fontsize="small")
    for axes in (ratio_axes, cka_axes):
        axes.set_ylim(-0.05, 1.05)
    loss_axes.set_yscale("log")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
