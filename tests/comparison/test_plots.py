"""Plots hold what was measured."""

import json

import matplotlib.pyplot as plt
import pytest

from dpk_det.comparison.plots import plot_curves, plot_metric, plot_prior, plot_time
from dpk_det.comparison.run import Run
from dpk_det.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def figures(monkeypatch):
    """Figures as they were when they were closed: a file of pixels does not tell its lines."""
    closed = []
    close = plt.close
    monkeypatch.setattr(plt, "close", lambda f: (closed.append(f), close(f)))
    return closed


@pytest.fixture
def with_metrics(tmp_path):
    """``with_metrics(name, lines)`` is a run that has logged them."""

    def make(name, lines):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
        return Run(name, "", tmp_path / name)

    return make


def drawn(axes):
    return {x.get_label(): (list(x.get_xdata()), list(x.get_ydata())) for x in axes.lines}


def test_each_row_has_its_dots_its_mean_and_baselines_a_line(tmp_path, figures):
    def row(title, values, **other):
        mean = sum(values.values()) / len(values) if values else None
        return {"title": title, "values": values, "mean": mean, **other}

    summary = {
        "metric": "segm/AP",
        "baseline": "plain",
        "teachers": {"big": row("teacher", {1: 50.0})},
        "methods": {
            "plain": row("plain student", {1: 30.0, 2: 32.0}, baseline=None),
            "dpk": row("DPK", {1: 33.0, 2: 35.0}, baseline="plain", learns_by=["dpk"]),
            "later": row("not yet", {}, baseline="dpk"),
        },
    }
    plot_metric(summary, tmp_path / "ap.png")
    assert (tmp_path / "ap.png").read_bytes().startswith(PNG)
    axes = figures[0].axes[0]
    lines = [(list(x.get_xdata()), list(x.get_ydata())) for x in axes.lines]
    for dots in (([50.0], [0]), ([33.0, 35.0], [1, 1]), ([30.0, 32.0], [2, 2])):
        assert dots in lines
    assert ([31.0, 31.0], [1.65, 2.35]) in lines  # the mean
    assert [xs for xs, ys in lines if ys == [0, 1]] == [[34.0, 34.0], [31.0, 31.0]]  # baselines
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels == ["teacher", "DPK", "plain student"]  # best first, what is not done left out
    colours = {tuple(x.get_ydata()): x.get_color() for x in axes.lines}
    assert colours[1, 1] != colours[0,] == colours[2, 2]  # DPK alone is in colour
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert axes.get_xlabel() == "mask AP"
    plot_metric(summary | {"metric": "cls/top1"}, tmp_path / "top-1.png")
    assert figures[1].axes[0].get_xlabel() == "top-1, %"


def test_lines_join_what_was_trained_for_several_times(tmp_path, figures):
    def row(title, mean, seconds, **other):
        return {"title": title, "mean": mean, "training_seconds": seconds, **other}

    methods = {
        "plain": row("plain student", 30.0, 60, baseline=None, control=None),
        "long": row("trained longer", 33.0, 120, baseline="plain", control=None),
        "dpk": row("DPK", 35.0, 120, baseline="plain", control="long"),
        "pkd": row("PKD", 34.0, 60, baseline="plain", control="plain"),
    }
    summary = {"metric": "bbox/AP", "methods": methods}
    assert plot_time(summary, tmp_path / "time.png")
    lines = drawn(figures[0].axes[0])
    assert lines["plain student"] == ([1.0, 2.0], [30.0, 33.0])
    methods["long"]["mean"] = None  # the baseline is itself the only control that is done
    assert plot_time(summary, tmp_path / "time.png")
    assert drawn(figures[1].axes[0])["plain student"] == ([1.0], [30.0])


def test_curves_are_means_over_the_steps_that_all_seeds_have(with_metrics, tmp_path, figures):
    def log(*figures):
        return [{"iteration": i, "bbox/AP": ap} for i, ap in figures] + [{"iteration": 50, "x": 1}]

    a, b = (
        with_metrics("a", log((9, 1.0), (19, 3.0))),
        with_metrics("b", log((9, 2.0), (19, 5.0), (29, 6.0))),
    )
    c = with_metrics("c", log((9, 7.0), (29, 8.0)))
    path = tmp_path / "curves.png"
    assert plot_curves({"two": [a, b], "one": [c], "none": []}, "bbox/AP", path)
    assert path.read_bytes().startswith(PNG)
    assert drawn(figures[0].axes[0]) == {"two": ([10, 20], [1.5, 4.0]), "one": ([10, 30], [7, 8])}


def test_one_evaluation_is_no_curve(with_metrics, tmp_path):
    run = with_metrics("a", [{"iteration": 9, "bbox/AP": 1.0}])
    assert not plot_curves({"a": [run]}, "bbox/AP", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_the_prior_is_drawn_of_runs_that_have_one(with_metrics, tmp_path, figures):
    def line(i):
        return {
            "iteration": i,
            "total_loss": 10 / (i + 1),
            "loss_dpk": 5 / (i + 1),
            "loss_cls": 1.0,
            "dpk/ratio_p2": 1 / (i + 1),
            "dpk/cka_p2": 1 - 1 / (i + 1),
            "dpk/loss_p2": 3.0,
        }

    dpk = with_metrics("dpk", [line(i) for i in (19, 39)] + [{"iteration": 40, "bbox/AP": 1.0}])
    plain = with_metrics("plain", [{"iteration": i, "total_loss": 2.0} for i in (19, 39)])
    path = tmp_path / "prior.png"
    assert plot_prior({"mine": dpk, "plain": plain}, path)

    assert path.read_bytes().startswith(PNG)
    steps = [20, 40]
    assert [drawn(axes) for axes in figures[0].axes] == [
        {"mine p2": (steps, [1 / 20, 1 / 40])},
        {"mine p2": (steps, [1 - 1 / 20, 1 - 1 / 40])},
        {
            "mine: total_loss": (steps, [10 / 20, 10 / 40]),
            "mine: loss_dpk": (steps, [5 / 20, 5 / 40]),
        },
    ]
    assert not plot_prior({"plain": plain}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_title_with_dollars_is_no_formula(with_metrics, tmp_path, figures):
    row = {"title": r"costs $\nope$", "values": {1: 50.0}, "mean": 50.0}
    summary = {"metric": "bbox/AP", "baseline": "a", "teachers": {}, "methods": {"a": row}}
    plot_metric(summary, tmp_path / "ap.png")
    lines = [{"iteration": i, "bbox/AP": 1.0} for i in (9, 19)]
    assert plot_curves({row["title"]: [with_metrics("a", lines)]}, "bbox/AP", tmp_path / "c.png")
    assert figures[0].axes[0].get_yticklabels()[0].get_text() == r"costs \$\nope\$"


def test_a_plot_is_written_whole_or_not_at_all(tmp_path, little_space):
    path = tmp_path / "ap.png"
    path.write_text("before")
    row = {"title": "a", "values": {1: 50.0}, "mean": 50.0}
    summary = {"metric": "m", "baseline": "a", "teachers": {"a": row}, "methods": {}}
    with pytest.raises(UserError, match=r"ap\.png could not be written \(File too large"):
        with little_space(1000):
            plot_metric(summary, path)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    assert not plt.get_fignums()


def test_a_real_training_can_be_plotted(trained, tmp_path, figures):
    path = tmp_path / "prior.png"
    assert plot_prior({"dpk": Run("dpk", "", trained)}, path)
    assert path.read_bytes().startswith(PNG)
    assert [len(axes.lines) for axes in figures[0].axes] == [3, 3, 2]
