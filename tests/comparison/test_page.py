"""The page of a comparison: it stands alone, and says what its figures say."""

import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from dpk_det.comparison.page import class_table, contenders, headline
from dpk_det.comparison.plan import plan
from dpk_det.comparison.report_files import write_report
from dpk_det.comparison.suite import read_suite
from dpk_det.comparison.summary import summarise

SUITE = """
title: 'Cats & "dogs" <b>'
seeds: [1, 2]
teachers: {{big: {{title: big, config: {tiny.teacher}}}}}
baseline: plain
methods:
  plain: {{title: plain student, config: {tiny.plain}}}
  long:
    {{title: trained longer, config: {tiny.plain}, opts: {{SOLVER.MAX_ITER: 5}}, baseline: plain}}
  dpk: {{title: "DPK <i>", config: {tiny.dpk}, teacher: big, control: long}}
  worse: {{title: another, config: {tiny.dpk}, teacher: big}}
"""


class Page(HTMLParser):
    """What stands on a page: tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.opened = [], [], []
        self.feed(text)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.opened.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def detections(tiny):
    """On one photo: an object, something that is not there, and that again with a low score."""
    content = json.loads((tiny.plain.parent / "images.json").read_text())
    there = next(x for x in content["annotations"] if x["image_id"] == 3)
    nothing = {"image_id": 3, "category_id": 2, "bbox": [1.5, 40.25, 5, 6]}
    return [
        {**{key: there[key] for key in nothing}, "score": 0.75},
        {**nothing, "score": 0.5},
        {**nothing, "score": 0.1},
    ]


@pytest.fixture
def page(tiny, tmp_path, finish):
    """``page(dpk={1: 30.0, 2: 31.0}, ...)`` finishes these runs and gives the page."""

    def make(failed=(), detections=None, suite=SUITE, made=None, **aps):
        (tmp_path / "suite.yaml").write_text(suite.format(tiny=tiny))
        todo = plan(read_suite(tmp_path / "suite.yaml"), tmp_path / "out" / "runs")
        for name, values in aps.items():
            for seed, ap in values.items():
                run = todo.rows[name][seed]
                box = {"AP": ap, "AP50": ap + 20, "AP-square": ap - 1, "AP-disc": ap + seed}
                finish(run, ap, results={"bbox": box}, **(made or {}).get(name, {}))
                if detections and name in ("plain", "dpk"):
                    path = run.folder / "inference" / "coco_instances_results.json"
                    path.parent.mkdir()
                    path.write_text(json.dumps(detections if name == "dpk" else []))
                    os.utime(path, (1, 1))
        configs = {
            name: tiny.cfg({"plain": "plain", "long": "plain", "big": "teacher"}.get(name, "dpk"))
            for name in todo.rows
        }
        write_report(todo, configs, tmp_path / "out", "a command", list(failed))
        return Page((tmp_path / "out" / "report.html").read_text())

    return make


FINISHED = {
    "big": {1: 60.0},
    "plain": {1: 20.0, 2: 22.0},
    "long": {1: 21.0, 2: 24.0},
    "dpk": {1: 30.0, 2: 33.0},
    "worse": {1: 10.0, 2: 11.0},
}


def test_it_needs_nothing_but_itself_and_no_picture_is_broken(page, detections):
    found = page(**FINISHED, detections=detections)
    sources = [x[key] for _, x in found.tags for key in ("src", "href") if key in x]
    assert len(sources) > 3
    ids = {x["id"] for _, x in found.tags if "id" in x}
    for source in sources:
        if source.startswith("#"):
            assert source[1:] in ids
            continue
        kind, _, data = source.partition(";base64,")
        assert kind in ("data:image/png", "data:image/jpeg")
        image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        assert image is not None and image.size
    assert found.all("script") == found.all("link") == []
    assert not re.search(r"url\(|@import|https?:", " ".join(found.texts))


def test_a_browser_opens_it_and_asks_no_network_for_anything(page, tmp_path, detections):
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("needs chromium, which is not installed")
    page(**FINISHED, detections=detections)
    events = tmp_path / "events.json"
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    options += " --disable-background-networking --disable-component-update"
    html = tmp_path / "out" / "report.html"
    shown = subprocess.run(
        [
            chromium,
            *options.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--log-net-log={events}",
            "--dump-dom",
            f"file://{html}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "What the columns mean" in shown.stdout
    # the browser's own, of an update say, are not the page's
    asked = set(re.findall(r'"url":"(\w+)://([^/"]*)', events.read_text()))
    assert {host for scheme, host in asked if scheme in ("http", "https")} <= {
        "accounts.google.com",
        "clients2.google.com",
        "content-autofill.googleapis.com",
        "www.google.com",
    }


def test_boxes_are_drawn_where_they_were_found(page, detections):
    found = page(**FINISHED, detections=detections)
    rects = [x for x in found.all("rect") if x["class"] in ("right", "wrong")]
    drawn = {tuple(float(x[key]) for key in ("x", "y", "width", "height")) for x in rects}
    assert drawn == {tuple(map(float, x["bbox"])) for x in detections[:2]}
    assert sorted(x["class"] for x in rects) == ["right", "wrong"]
    assert "square 0.75" in found.texts and "disc 0.50" in found.texts
    assert (
        'is better than "plain student" on 1 photos of tiny, worse on 0, equal on 7' in found.text
    )


def test_it_says_who_is_better_by_how_much_and_at_what_cost(page):
    text = page(**FINISHED).text
    assert 'The best student that distils is "DPK <i>": 31.5 ± 2.1 AP.' in text
    # t = 10.5 / (0.707 / sqrt(2)) = 21, one degree of freedom: p = 0.0303, three times that by Holm
    assert 'is +10.5 ± 0.7 against "plain student", which may be chance (p = 0.091).' in text
    assert (
        'That is +9.0 ± 0.0 against "trained longer", which trained at least as long without '
        "distilling." in text
    )
    assert '1.00x the time of a step of "plain student"' in text
    assert "Best of all" not in text
    assert "There is nothing to show: the detections" in text
    assert 'Cats & "dogs" <b>' in text and "a command" in text


def test_a_control_that_trained_for_less_time_is_not_said_to_have_trained_as_long(page):
    text = page(**FINISHED, made={"dpk": {"seconds_per_step": 0.15}}).text
    assert (
        'That is +9.0 ± 0.0 against "trained longer", which trained for 67 % of the time without '
        "distilling." in text
    )


def test_a_control_may_be_two_percent_short(page):
    text = page(**FINISHED, made={"dpk": {"seconds_per_step": 0.102}}).text
    assert "which trained at least as long without distilling" in text


def test_a_control_that_distils_is_not_said_not_to(page):
    text = page(**FINISHED, suite=SUITE.replace("control: long", "control: worse")).text
    assert 'against "another", which trained at least as long' in text
    assert "at least as long without" not in text


def test_of_a_control_of_unknown_time_nothing_is_said_of_it(page):
    text = page(**FINISHED, made={"long": {"seconds_per_step": None}}).text
    assert 'against "trained longer", which trained for an unknown time without ' in text


def test_rows_are_sorted_and_those_that_learn_are_marked(page):
    found = page(**FINISHED)
    titles = ["big", "DPK <i>", "trained longer", "plain student", "another"]
    places = [found.text.index(f" {title} ") for title in titles]
    chart = found.text[found.text.index("A dot is a training") :]
    places = [chart.index(title) for title in titles]
    assert places == sorted(places)
    marked = [x for x in found.all("div") if x.get("class") == "row distils"]
    assert len(marked) == 2
    dots = [float(x["style"].removeprefix("left:").rstrip("%")) for x in found.all("i")]
    assert len(dots) == 9 and min(dots) == 2 and max(dots) == 98
    # 20 of 10 to 60: a fifth of the way
    assert any(dot == pytest.approx(2 + 96 / 5) for dot in dots)


def test_it_is_honest_where_distilling_does_not_win(page):
    finished = FINISHED | {"dpk": {1: 20.5, 2: 21.0}, "long": {1: 40.0, 2: 41.0}}
    text = page(**finished).text
    assert "which may be chance" in text
    assert 'Best of all is "trained longer", which does not distil: 40.5 ± 0.7.' in text


def test_one_seed_proves_nothing(page):
    text = page(**{name: {1: values[1]} for name, values in FINISHED.items()}).text
    assert 'against "plain student" (one seed: not proven).' in text


def test_what_is_half_done_and_what_failed_is_said(page):
    text = page(plain={1: 20.0}, failed=["dpk-seed1"]).text
    assert "1 of 9 trainings are done. Failed: dpk-seed1." in text
    assert "No student that distils can be compared with its baseline yet." in text


def test_classes_are_sorted_by_what_the_students_differ(page):
    found = page(**FINISHED)
    text = found.text[found.text.index("AP of each class") :]
    # square: 30.5 of DPK, 20 of the plain one; disc: 33 and 22.5
    assert re.search(r"square 20\.0 30\.5 59\.0 \+10\.5", text)
    assert re.search(r"disc 22\.5 33\.0 61\.0 \+10\.5", text)


def summary_of_classes(count):
    def row(shift):
        box = {f"AP-{i}": 10.0 + shift * i for i in range(count)} | {"AP-nan": float("nan")}
        return {"title": str(shift), "runs": {1: {"results": {"bbox": box}}}}

    return {"teachers": {}, "methods": {"plain": row(0), "dpk": row(0.5)}}


def test_of_many_classes_those_that_differ_most_are_shown():
    pair = ("plain", "dpk")
    table = class_table(summary_of_classes(80), [*pair], pair)
    assert [row["name"] for row in table["rows"]] == [str(i) for i in range(79, 49, -1)]
    assert table["left_out"] == 50 and table["best"] == 1 and table["most"] == 10 + 79 / 2
    assert class_table(summary_of_classes(0), [*pair], pair) is None


def test_a_comparison_of_plain_students_has_a_page_as_well(page):
    suite = SUITE.partition("  dpk:")[0]
    text = page(suite=suite, plain={1: 20.0, 2: 22.0}, long={1: 21.0, 2: 24.0}).text
    assert "No student that distils can be compared" in text
    assert "trained longer" in text


def test_contenders_are_the_best_and_what_it_is_measured_against(tiny, tmp_path, finish):
    suite = SUITE.replace("control: long", "baseline: long")
    (tmp_path / "suite.yaml").write_text(suite.format(tiny=tiny))
    todo = plan(read_suite(tmp_path / "suite.yaml"), tmp_path / "runs")
    configs = dict.fromkeys(todo.rows, tiny.cfg("plain"))
    configs |= {name: tiny.cfg("dpk") for name in ("dpk", "worse")}
    finish(todo.rows["plain"][1], 20.0)
    assert contenders(summarise(todo, configs, ""), configs) is None
    finish(todo.rows["worse"][1], 10.0)
    assert contenders(summarise(todo, configs, ""), configs) == ("plain", "worse")
    finish(todo.rows["dpk"][1], 15.0)  # nothing to measure it against yet
    assert contenders(summarise(todo, configs, ""), configs) == ("plain", "worse")
    finish(todo.rows["long"][1], 21.0)
    summary = summarise(todo, configs, "")
    assert contenders(summary, configs) == ("long", "dpk")
    text = " ".join(headline(summary, ("long", "dpk"), {"dpk", "worse"}))
    assert 'That is -6.0 against "trained longer"' in text
    assert '"plain student" has 20.0.' in text and 'Best of all is "trained longer"' in text


def test_no_training_ends_because_of_the_page(page, monkeypatch, tmp_path, caplog):
    def fail(*arguments):
        raise RuntimeError("a picture")

    monkeypatch.setattr("dpk_det.comparison.page.headline", fail)
    with pytest.raises(FileNotFoundError, match="report.html"):
        page(**FINISHED)
    assert "The page could not be made" in caplog.text
    assert (tmp_path / "out" / "report.md").exists()


def test_a_baseline_that_distils_is_not_said_not_to(tiny, tmp_path, finish):
    suite = SUITE.replace("baseline: plain", "baseline: dpk").replace(", control: long", "")
    (tmp_path / "suite.yaml").write_text(suite.format(tiny=tiny))
    todo = plan(read_suite(tmp_path / "suite.yaml"), tmp_path / "runs")
    configs = dict.fromkeys(todo.rows, tiny.cfg("dpk"))
    finish(todo.rows["dpk"][1], 30.0)
    finish(todo.rows["worse"][1], 20.0)
    summary = summarise(todo, configs, "")
    assert "Best of all" not in " ".join(headline(summary, ("dpk", "worse"), {*todo.methods}))


def test_classifiers_have_a_page_without_photos(tiny_images, tmp_path, finish):
    text = f"""
metric: cls/top1
baseline: plain
teachers: {{big: {{config: {tiny_images.teacher}}}}}
methods:
  plain: {{config: {tiny_images.plain}}}
  dpk: {{title: under a teacher, config: {tiny_images.dpk}, teacher: big}}
"""
    (tmp_path / "suite.yaml").write_text(text)
    todo = plan(read_suite(tmp_path / "suite.yaml"), tmp_path / "runs")
    for name, top1 in (("big", 90.0), ("plain", 70.0), ("dpk", 75.0)):
        finish(todo.rows[name][1], None, results={"cls": {"top1": top1, "top5": 99.0}})
    configs = {
        name: tiny_images.cfg({"big": "teacher"}.get(name, name))
        for name in ("big", "plain", "dpk")
    }
    write_report(todo, configs, tmp_path, "a command", [])
    found = Page((tmp_path / "report.html").read_text()).text
    assert 'The best student that distils is "under a teacher": 75.0 top-1.' in found
    assert "Where the students differ" not in found and "AP of each class" not in found
