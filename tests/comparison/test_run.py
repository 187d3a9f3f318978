"""What a training has left in its folder."""

import json
from pathlib import Path

import pytest

from dpk_det.comparison.run import Run, describe, progress, read_metrics
from dpk_det.errors import UserError


def write_metrics(folder: Path, *lines):
    (folder / "metrics.json").write_text("\n".join(map(str, lines)))


def test_metrics_are_in_order_and_the_later_line_of_a_step_counts(tmp_path):
    # stopped after step 60, resumed from a checkpoint at 25
    steps = [(19, 5), (39, 4), (59, 3), (29, 4.8), (39, 4.5), (59, 3.5), (79, 2)]
    write_metrics(
        tmp_path, *(json.dumps({"iteration": i, "total_loss": loss}) for i, loss in steps)
    )
    assert read_metrics(tmp_path) == [
        {"iteration": 19, "total_loss": 5},
        {"iteration": 29, "total_loss": 4.8},
        {"iteration": 39, "total_loss": 4.5},
        {"iteration": 59, "total_loss": 3.5},
        {"iteration": 79, "total_loss": 2},
    ]


def test_lines_of_one_step_are_put_together(tmp_path):
    write_metrics(tmp_path, '{"iteration": 1, "a": 1}', '{"iteration": 1, "bbox/AP": 2}')
    assert read_metrics(tmp_path) == [{"iteration": 1, "a": 1, "bbox/AP": 2}]


@pytest.mark.parametrize("half", ['{"iteration": 2, "a"', '{"iteration": 2, "a": 1.', "{", ""])
def test_a_half_written_last_line_is_left_out(tmp_path, half):
    write_metrics(tmp_path, '{"iteration": 1, "a": 1}', half)
    assert read_metrics(tmp_path) == [{"iteration": 1, "a": 1}]


def test_there_are_no_metrics_before_the_first(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_real_trainings_metrics_can_be_read(trained):
    metrics = read_metrics(trained)
    assert [m["iteration"] for m in metrics if "total_loss" in m] == [2]
    assert "dpk/ratio_p2" in metrics[0]
    assert metrics[-1]["bbox/AP"] > 0


@pytest.mark.parametrize(
    "damage",
    [
        b"\x89PNG\x00\xff\n",
        b"\x00" * 50 + b"\n",
        b"[1]\n3\nnull\n",
        b"[" * 10_000 + b"\n",
        b'{"iteration": "2"}\n{"iteration": true}\n{"total_loss": 2}\n{"iteration": null}\n',
    ],
)
def test_what_is_no_line_of_numbers_is_left_out(tmp_path, damage):
    good = b'{"iteration": 1, "a": 1, "b": "x", "c": NaN}\n'
    (tmp_path / "metrics.json").write_bytes(damage + good + damage)
    (line,) = read_metrics(tmp_path)
    assert line.keys() == {"iteration", "a", "c"}
    assert progress(Run("r", "c.yaml", tmp_path)) == "r: step 2"


def test_progress_tells_step_loss_and_minutes_of_the_line_written_last(tmp_path):
    run = Run("r", "c.yaml", tmp_path)
    assert progress(run) == "r: starting"
    line = {"iteration": 99, "total_loss": 1.256, "eta_seconds": 300}
    write_metrics(tmp_path, '{"iteration": 199}', json.dumps(line))
    assert progress(run) == "r: step 100, loss 1.26, 5 min to go"
    evaluated = '{"iteration": 100, "bbox/AP": 12.0}'  # after the last step, 100
    write_metrics(tmp_path, json.dumps(line), evaluated)
    assert progress(run) == "r: step 100, loss 1.26, 5 min to go"


# ------------------------------------------------------------------ results


def test_the_results_of_a_real_training_are_read(trained):
    run = Run("r", "c.yaml", trained)
    assert run.results == json.loads((trained / "results.json").read_text())
    assert run.figures["bbox/AP"] > 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\x89PNG\xff",
        b"\x00" * 20,
        b"[]",
        b"3",
        b"{}",
        b"[" * 10_000,
        b'{"results": 3}',
        b'{"results": {"bbox": {"AP": "high"}}}',
        b'{"results": {"bbox": {"AP": [1]}}}',
        b'{"results": {"bbox": {"AP": NaN}}}',
        b'{"results": {}, "parameters": "many"}',
        b'{"results": {}, "seconds_per_step": "1"}',
        b'{"results": {}, "machine": {"gpu": null}}',
        b'{"results": {}, "resumed": [3]}',
        b'{"results": {}, "resumed": [{"step": 3}]}',
    ],
)
def test_damaged_results_are_told_in_a_sentence(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json is damaged \(.*\): remove it and call aga"):
        Run("r", "c.yaml", tmp_path).results  # noqa: B018


def test_without_results_a_run_is_not_done(tmp_path):
    assert Run("r", "c.yaml", tmp_path / "gone").results is None


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ({"bbox": {"AP": 1.25, "AP50": 3.0}, "segm": {"AP": 2.0}}, "bbox AP 1.2, segm AP 2.0"),
        ({"classification": {"top1": 90.0, "top5": 99.0}}, "classification top1 90.0"),
        ({"bbox": {"AP": None}}, "nothing measured"),
        ({}, "nothing measured"),
    ],
)
def test_a_finished_run_is_described_by_its_ap_or_what_it_has(tmp_path, results, text):
    (tmp_path / "results.json").write_text(json.dumps({"results": results}))
    assert describe(Run("r", "c.yaml", tmp_path)) == text
