"""The report: figures against numpy's, and curves that hold what was measured."""

import json

import numpy as np
import pytest

from dpk_det.engine import report
from dpk_det.engine.report import method_table, plot_prior, spread
from dpk_det.engine.runs import Run


def finished(folder, ap, ap50=50.0, seconds=0.1, parameters=1234567):
    folder.mkdir()
    results = {
        "parameters": parameters,
        "seconds_per_step": seconds,
        "results": {"bbox": {"AP": ap, "AP50": ap50}},
    }
    (folder / "results.json").write_text(json.dumps(results))
    return Run(folder.name, "c.yaml", folder)


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_method_has_mean_and_sample_deviation_over_its_seeds(tmp_path):
    aps, ap50s, seconds = [30.04, 31.56, 28.93], [50.1, 52.2, 49.0], [0.6, 0.1, 0.2]
    runs = [
        finished(tmp_path / f"s{i}", *values)
        for i, values in enumerate(zip(aps, ap50s, seconds, strict=True))
    ]
    header, _, row = cells(method_table({"student": runs}))
    assert header == ["", "AP", "AP50", "AP of each seed", "parameters", "seconds a step"]
    assert row == [
        "student",
        f"{np.mean(aps):.1f} ± {np.std(aps, ddof=1):.1f}",
        f"{np.mean(ap50s):.1f} ± {np.std(ap50s, ddof=1):.1f}",
        "30.0, 31.6, 28.9",
        "1,234,567",
        "0.200",
    ]


def test_one_seed_has_no_spread_and_methods_keep_their_order(tmp_path):
    table = method_table(
        {
            "teacher": [finished(tmp_path / "t", 40.0)],
            "student": [finished(tmp_path / "s", 30.0, seconds=None)],
        }
    )
    _, _, teacher, student = cells(table)
    assert teacher[:2] == ["teacher", "40.0"]
    assert student[:2] == ["student", "30.0"]
    assert student[-1] == ""  # resumed when there was nothing left to train


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.0, 10.0, 3.3, 4.25]])
def test_the_spread_is_numpys(values):
    assert spread(values) == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


@pytest.fixture
def figures(monkeypatch):
    """Figures as they were when they were closed."""
    closed = []
    close = report.plt.close
    monkeypatch.setattr(report.plt, "close", lambda f: (closed.append(f), close(f)))
    return closed


def test_curves_hold_what_was_measured(tmp_path, figures):
    def line(i):
        return {
            "iteration": i,
            "total_loss": 10 / (i + 1),
            "loss_dpk": 5 / (i + 1),
            "dpk/ratio_p2": 1 / (i + 1),
            "dpk/cka_p2": 1 - 1 / (i + 1),
            "dpk/loss_p2": 3.0,
        }

    for name in ("dpk", "plain"):
        (tmp_path / name).mkdir()
    lines = [line(i) for i in (19, 39)] + [{"iteration": 40, "bbox/AP": 1.0}]
    plain = [{"iteration": i, "total_loss": 2.0} for i in (19, 39)]
    for name, metrics in (("dpk", lines), ("plain", plain)):
        text = "\n".join(map(json.dumps, metrics))
        (tmp_path / name / "metrics.json").write_text(text)
    path = tmp_path / "prior.png"
    plot_prior({n: Run(n, "", tmp_path / n) for n in ("dpk", "plain")}, path)

    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawn = [
        {x.get_label(): (x.get_xdata().tolist(), list(x.get_ydata())) for x in axes.lines}
        for axes in figures[0].axes
    ]
    steps = [20, 40]
    assert drawn[0] == {"dpk p2": (steps, [1 / 20, 1 / 40])}
    assert drawn[1] == {"dpk p2": (steps, [1 - 1 / 20, 1 - 1 / 40])}
    assert drawn[2] == {
        "dpk: total_loss": (steps, [10 / 20, 10 / 40]),
        "dpk: loss_dpk": (steps, [5 / 20, 5 / 40]),
        "plain: total_loss": (steps, [2.0, 2.0]),
    }


def test_a_real_training_can_be_plotted(trained, tmp_path, figures):
    path = tmp_path / "prior.png"
    plot_prior({"dpk": Run("dpk", "", trained)}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [len(axes.lines) for axes in figures[0].axes] == [3, 3, 2]
