"""The report's table and sentences, of numbers that are given."""

import pytest

from dpk_det.comparison.report import method_table, metric_label, metric_name, report_text, spread

MACHINE = {
    "platform": "Linux",
    "cores": 2,
    "threads": 1,
    "gpu": None,
    "python": "3.11",
    "torch": "2.14",
    "detectron2": "0.6",
}


def row(title, values, **other):
    mean = sum(values.values()) / len(values) if values else None
    return {
        "title": title,
        "values": values,
        "mean": mean,
        "sd": 1.25 if len(values) > 1 else None,
        "secondary_mean": mean and mean + 20,
        "secondary_sd": 0.5 if len(values) > 1 else None,
        "iterations": 30,
        "images_per_step": 4,
        "parameters": 1234567,
        "runs": {seed: {} for seed in values},
    } | other


def method(title, values, baseline, gain=None, **other):
    rest = {"relative_seconds": None, "relative_memory": None, "gain_at_equal_time": None}
    rest |= {"training_seconds": 30.0, "learns_by": []}
    return row(title, values, baseline=baseline, gain=gain, **rest | other)


def gain_of(mean, sd=None, interval=None, holm=None, seeds=(1,)):
    """As of summary.paired_gain."""
    return {"seeds": list(seeds), "mean": mean, "sd": sd, "interval": interval, "holm": holm}


@pytest.fixture
def summary():
    gain = gain_of(-1.5, 0.25, [-2.04, -0.96], 0.0123, seeds=(1, 2))
    return {
        "title": "A title",
        "description": "What it is about.",
        "command": "python tools/compare.py x.yaml",
        "metric": "bbox/AP",
        "secondary": "bbox/AP50",
        "seeds": [1, 2],
        "baseline": "plain",
        "side_by_side": False,
        "doubts": [],
        "trainings": 5,
        "finished": 5,
        "failed": [],
        "machines": [MACHINE],
        "given_teachers": {},
        "teachers": {"big": row("the teacher", {1: 50.04}, iterations=90, parameters=7654321)},
        "methods": {
            "plain": method(
                "plain student", {1: 30.0, 2: 32.0}, None, relative_seconds=1, relative_memory=1
            ),
            "kd": method(
                "KD", {1: 29.0, 2: 30.0}, "plain", gain, relative_seconds=1.5, relative_memory=2.1
            ),
        },
    }


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_each_row_has_its_figures_under_their_headers(summary):
    header, _, teacher, plain, kd = cells(method_table(summary))
    assert header == [
        *("", "seeds", "AP", "AP50", "gain", "over", "95 %", "p", "step time", "memory"),
        "AP of each seed",
    ]
    assert teacher == ["the teacher", "1", "50.0", "70.0", *[""] * 6, "50.0"]
    plain_aps = ["31.0 ± 1.2", "51.0 ± 0.5"]
    assert plain == ["plain student", "2", *plain_aps, *[""] * 4, "1.00x", "1.00x", "30.0 32.0"]
    gain = ["-1.5 ± 0.2", "plain student", "-2.0 to -1.0", "0.012"]
    times = ["1.50x", "2.10x"]
    assert kd == ["KD", "2", "29.5 ± 1.2", "49.5 ± 0.5", *gain, *times, "29.0 30.0"]


def test_with_one_seed_there_is_neither_deviation_nor_p(summary):
    summary["seeds"] = [1]
    summary["methods"] = {
        "plain": method("plain", {1: 30.0}, None),
        "kd": method("KD", {1: 33.0}, "plain", gain_of(3.0)),
    }
    text = report_text(summary, {})
    header, _, _, _, kd = cells(method_table(summary))
    assert header == ["", "seeds", "AP", "AP50", "gain", "over", "AP of each seed"]
    assert kd == ["KD", "1", "33.0", "53.0", "+3.0", "plain", "33.0"]
    assert "- gain:" in text and "- p " not in text and "±" not in text


def test_an_unfinished_seed_keeps_its_place(summary):
    summary["methods"]["kd"]["values"] = {2: 30.0}
    assert cells(method_table(summary))[-1][-1] == "- 30.0"
    summary["methods"]["kd"] |= {"values": {}, "mean": None, "sd": None, "gain": None}
    assert cells(method_table(summary))[-1][1:3] == ["0", ""]


@pytest.mark.parametrize(("p", "text"), [(0.0004, "<0.001"), (0.001, "0.001"), (1.0, "1.000")])
def test_a_small_p_is_no_zero(summary, p, text):
    summary["methods"]["kd"]["gain"]["holm"] = p
    assert text in cells(method_table(summary))[-1]


def test_a_gain_at_equal_time_has_columns_and_notes_of_its_own(summary):
    honest = gain_of(0.25, 1.0, [-9.0, 9.4], 0.8, seeds=(1, 2))
    longer = method("plain student, as long as KD", {1: 29.0, 2: 29.5}, "plain", iterations=45)
    summary["methods"]["kd"] |= {"control": "longer", "gain_at_equal_time": honest}
    summary["methods"]["longer"] = longer
    header, _, *rows = cells(method_table(summary))
    assert header[4:11] == ["gain", "over", "95 %", "p", "gain at equal time", "95 %", "p"]
    assert rows[2][8:11] == ["+0.2 ± 1.0", "-9.0 to +9.4", "0.800"]
    text = report_text(summary, {})
    assert (
        "- gain at equal time: over 'plain student, as long as KD', 45 steps of 4 images: trained "
        "at least as long without distilling ('KD').\n" in text
    )
    longer |= {"training_seconds": 24.0, "learns_by": ["pkd"]}
    text = report_text(summary, {})
    assert "45 steps of 4 images: trained for 80 % of the time ('KD')" in text
    assert "- 95 %: interval of confidence of the mean gain" in text
    assert "- p behind the gain: of a two-sided paired t-test over those seeds, corrected" in text
    assert "- p behind the gain at equal time: " in text


def test_the_text_says_what_was_run_and_where(summary):
    text = report_text(summary, {"ap.png": "A plot."})
    assert text.startswith("# A title\n\nWhat it is about.\n\n|")
    assert "![ap.png](ap.png)\n\nA plot." in text
    for note in ("AP: COCO's box AP", "±", "gain", "95 %", "p behind", "step time", "memory"):
        assert f"\n- {note}" in text
    assert "Schedule: 30 steps of 4 images for every student." in text
    assert "the teacher: 90 steps of 4 images, seed 1." in text
    assert "Parameters: 1234567 ('plain student', 'KD'); 7654321 ('the teacher')." in text
    assert "Seeds: 1, 2;" in text
    assert "memory of the whole process" in text
    assert "no GPU, 2 CPU cores" in text and "torch 2.14" in text
    assert "\n    python tools/compare.py x.yaml\n" in text
    assert "trainings are done" not in text


def test_schedules_that_differ_are_told_apart(summary):
    summary["methods"]["kd"]["iterations"] = 60
    text = report_text(summary, {})
    assert (
        "schedules differ: 30 steps of 4 images ('plain student'); 60 steps of 4 images ('KD')"
        in text
    )


def test_what_is_unfinished_or_failed_stands_at_the_top(summary):
    summary |= {"finished": 3, "failed": ["kd-seed1"]}
    text = report_text(summary, {})
    assert "**3 of 5 trainings are done; failed: kd-seed1.**" in text.partition("|")[0]


def test_memory_of_a_gpu_is_called_so(summary):
    summary["machines"] = [MACHINE | {"gpu": "Some GPU"}]
    text = report_text(summary, {})
    assert "memory: peak GPU memory over that of 'plain student'" in text and "Some GPU" in text


def test_teachers_whose_weights_were_given_are_named(summary):
    summary["given_teachers"] = {"zoo's": "", "mine": "mine.pth"}
    text = report_text(summary, {})
    assert "zoo's: neither trained nor evaluated here, weights of the model zoo." in text
    assert "mine: neither trained nor evaluated here, weights mine.pth." in text


def test_a_teacher_whose_weights_were_given_has_its_figures_but_no_seed(summary):
    results = {"teacher": {"datasets": ["a", "b"]}}
    given = row("given", {"given": 60.0}, weights="t.pth", iterations=None, runs={"given": results})
    summary["teachers"]["given"] = given
    assert cells(method_table(summary))[3] == ["given", "", "60.0", "80.0", *[""] * 7]
    text = report_text(summary, {})
    assert "- given: not trained here, weights t.pth, evaluated on a and b.\n" in text
    given |= {"values": {}, "runs": {}, "weights": ""}
    text = report_text(summary, {})
    assert "- given: not trained here, weights of the model zoo.\n" in text


def test_what_was_not_resumed_exactly_is_marked(summary):
    kd = summary["methods"]["kd"]
    kd["runs"] = {
        1: {"resumed": [{"step": 20, "exact": True}]},
        2: {
            "resumed": [
                {"step": 10, "exact": False},
                {"step": 25, "exact": False, "why": "2 processes became 1"},
            ]
        },
    }
    assert cells(method_table(summary))[-1][-1] == "29.0 30.0†"
    text = report_text(summary, {})
    assert "\n- †: resumed, but not as if it had never been interrupted: 'KD' with seed 2" in text
    assert "seed 2 after step 10 and step 25 (2 processes became 1). " in text
    kd["runs"].pop(2)
    assert "†" not in report_text(summary, {})


def test_trainings_that_ended_early_are_named_with_their_steps(summary):
    assert "ended early" not in report_text(summary, {})
    kd = summary["methods"]["kd"] | {"iterations": 25}
    summary["methods"]["kd"] = kd
    kd["runs"] = {
        1: {"iterations": 20, "ended_early": True},
        2: {"iterations": 30, "ended_early": False},
    }
    text = report_text(summary, {})
    assert "\n- ended early (TEST.PATIENCE): 'KD' with seed 1 after 20 steps. " in text
    assert "25 steps of 4 images ('KD')" in text


def test_a_title_breaks_neither_table_nor_list(summary):
    summary["methods"]["plain"]["title"] = "plain | a, b"
    text = report_text(summary, {})
    assert "| plain \\| a, b |" in text.replace("  ", "")
    assert "Parameters: 1234567 ('plain | a, b', 'KD');" in text


def test_no_cell_holds_a_comma(summary):
    assert "," not in method_table(summary)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("bbox/AP", "AP"),
        ("segm/AP50", "mask AP50"),
        ("keypoints/AP", "keypoint AP"),
        ("cls/top1", "top-1"),
        ("cls/top5", "top-5"),
        ("cls/top1-cat", "top1-cat"),
        ("classification/top1", "top1"),
        ("some_val/bbox/AP50", "AP50 on some_val"),
        ("some_val/cls/top5", "top-5 on some_val"),
        ("bbox/AP-a/b", "AP-a/b"),
    ],
)
def test_metrics_are_called_what_the_field_calls_them(metric, name):
    assert metric_name(metric) == name


def test_of_classifiers_the_columns_say_percent_once(summary):
    summary |= {"metric": "cls/top1", "secondary": "cls/top5"}
    header = cells(method_table(summary))[0]
    assert header[2:4] == ["top-1, %", "top-5, %"] and header[-1] == "top-1 of each seed"
    text = report_text(summary, {})
    assert "\n- top-1: share of images whose class is the likeliest, in percent.\n" in text
    assert metric_label("cls/top1-cat") == "top1-cat, %" and metric_label("segm/AP") == "mask AP"
    assert metric_label("x/cls/top1") == "top-1 on x, %"


def test_a_spread_shows_what_there_is():
    assert spread(None, None) == ""
    assert spread(3.14, None) == "3.1"
    assert spread(3.14, 0.16) == "3.1 ± 0.2"
    assert spread(3.14, 0.16, signed=True) == "+3.1 ± 0.2"
