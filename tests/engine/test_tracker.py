"""Curves sent to the real trackers, offline, and read back from what these leave on the disk."""

import json
import sqlite3
import struct

import pytest

from dpk_det.engine import tracker
from dpk_det.errors import UserError

STEPS = ["SOLVER.MAX_ITER", 30, "SOLVER.CHECKPOINT_PERIOD", 10]


def read_wandb(folder):
    """Figures by step of each run, and how it ended; the file is LevelDB's log, by its format."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = {}
    for path in sorted(folder.glob("out/wandb/offline-run-*/*.wandb")):
        data, at, piece, run = path.read_bytes(), 7, b"", None
        while at + 7 <= len(data):
            left = 2**15 - at % 2**15  # of a block; a header is not split
            if left < 7:
                at += left
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            piece += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (2, 3):  # more of this record follows
                continue
            record, piece = Record.FromString(piece), b""
            if record.HasField("run"):
                assert record.run.project == "trials" and record.run.display_name == "out"
                run = runs.setdefault(record.run.run_id, {"points": {}, "ended": None})
            elif record.HasField("history"):
                items = {".".join(x.nested_key) or x.key: x.value_json for x in record.history.item}
                point = {name: json.loads(value) for name, value in items.items()}
                point = {name: value for name, value in point.items() if name[0] != "_"}
                step = int(point.pop("iteration"))
                run["points"].setdefault(step, {}).update(point)
            elif record.HasField("exit"):
                run["ended"] = record.exit.exit_code == 0
    return [*runs.values()]


def read_mlflow(folder):
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    client = MlflowClient()
    experiment = client.get_experiment_by_name("trials")
    found = []
    for run in client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL):
        assert run.info.run_name == "out"
        assert "MAX_ITER: 30" in (folder / run.info.artifact_uri / "config.yaml").read_text()
        points = {}
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                points.setdefault(metric.step, {})[name] = metric.value
        found.append({"points": points, "ended": run.info.status == "FINISHED"})
    return found


def read_trackio(folder):
    with sqlite3.connect(folder / "trackio" / "trials.db") as base:
        rows = base.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    runs = {}
    for name, step, metrics in rows:
        assert name == "out"
        point = json.loads(metrics)
        if "step_time" in point:  # trackio keeps "time" for itself
            point["time"] = point.pop("step_time")
        runs.setdefault(name, {}).setdefault(step, {}).update(point)
    return [{"points": points, "ended": None} for points in runs.values()]  # it tells no end


READERS = {"wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


@pytest.fixture(params=READERS)
def begin(request, tiny, tmp_path, command, monkeypatch):
    """``begin(argument, ...)`` trains with a tracker in OUTPUT_DIR out; ``begin.read()``."""
    name = request.param
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if name == "trackio":  # which reads it when it is imported
        for module in ("trackio.utils", "trackio.sqlite_storage"):
            monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio", raising=False)

    def train(*argv):
        trackers = ["TRACKER.NAME", name, "TRACKER.PROJECT", "trials"]
        config = ["--config-file", tiny.dpk, "OUTPUT_DIR", tmp_path / "out"]
        options = [x for x in argv if str(x).startswith("--")]
        others = [x for x in argv if not str(x).startswith("--")]
        command(*options, *config, *STEPS, *trackers, *others)

    train.read = lambda: READERS[name](tmp_path)
    return train


def curves(folder):
    """What metrics.json holds, by step."""
    points = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        line = json.loads(line)
        points.setdefault(line.pop("iteration"), {}).update(line)
    return points


def flat(points, times=True):
    """Figures by step and name, to be compared with others but for rounding."""
    found = {(step, name): float(x) for step, of in points.items() for name, x in of.items()}
    if not times:
        found = {key: x for key, x in found.items() if "time" not in key[1] and "eta" not in key[1]}
    return pytest.approx(found, rel=1e-6, nan_ok=True)


def test_a_tracker_has_the_curves_of_metrics_json(begin, tmp_path):
    begin()
    (run,) = begin.read()
    expected = curves(tmp_path / "out")
    assert [*expected] == [19, 29, 30]
    assert "loss_dpk" in expected[19] and "dpk/ratio_p2" in expected[19]
    assert "bbox/AP" in expected[30]
    assert flat(run["points"]).expected == flat(expected)
    assert run["ended"] in (True, None)


def test_a_resumed_training_adds_to_its_run(begin, tmp_path):
    begin()
    out = tmp_path / "out"
    whole = curves(out)
    for name in ("model_final.pth", "model_0000029.pth", "results.json"):
        (out / name).unlink()  # as if it had been killed after step 20
    begin("--resume")
    assert [x["step"] for x in json.loads((out / "results.json").read_text())["resumed"]] == [20]
    (run,) = begin.read()
    assert flat(run["points"], times=False).expected == flat(whole, times=False)


class Fails:
    """A tracker without a network."""

    id = "1"

    def __init__(self, *begin):
        self.calls = 0

    def log(self, values, step):
        raise ConnectionError("no route\nto host")

    def finish(self, failed):
        raise AssertionError("it was left alone")


def test_a_tracker_that_fails_on_the_way_loses_nothing(
    tiny, tmp_path, command, monkeypatch, capsys
):
    monkeypatch.setitem(tracker.TRACKERS, "wandb", Fails)
    command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, *STEPS, "TRACKER.NAME", "wandb")
    said = capsys.readouterr().out
    assert said.count("wandb failed (no route to host): the training goes on without it") == 1
    assert json.loads((tmp_path / "results.json").read_text())["iterations"] == 30


def test_a_tracker_that_cannot_begin_is_said_before_training(
    tiny, tmp_path, command, monkeypatch, capsys
):
    def begin(*arguments):
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(tracker.TRACKERS, "wandb", begin)
    with pytest.raises(SystemExit):
        command("--config-file", tiny.plain, "OUTPUT_DIR", tmp_path, "TRACKER.NAME", "wandb")
    assert "wandb cannot begin a run (api_key not configured): " in capsys.readouterr().err
    assert not [*tmp_path.glob("*.pth")]


def test_a_training_that_fails_is_marked(tiny, tmp_path, command, monkeypatch):
    class Keeps(Fails):
        ended = []

        def log(self, values, step):
            pass

        def finish(self, failed):
            self.ended.append(failed)

    monkeypatch.setitem(tracker.TRACKERS, "wandb", Keeps)
    argv = ["--config-file", tiny.plain, "TRACKER.NAME", "wandb", "OUTPUT_DIR"]
    command(*argv, tmp_path / "good")
    with pytest.raises(SystemExit):
        command(*argv, tmp_path / "bad", "SOLVER.BASE_LR", "1e6", *STEPS)
    assert Keeps.ended == [False, True]


def test_trackers_are_checked_with_the_config(tiny, monkeypatch):
    with pytest.raises(UserError, match=r"tracker \(TRACKER.NAME\) named 'wandbb'.*'wandb'"):
        tracker.check_tracker(tiny.cfg("plain", "TRACKER.NAME", "wandbb"))
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: pip install mlflow"):
        tracker.check_tracker(tiny.cfg("plain", "TRACKER.NAME", "mlflow"))
    tracker.check_tracker(tiny.cfg("plain"))


def test_a_folder_of_that_name_is_no_package(tiny, tmp_path, monkeypatch):
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tracker.TRACKERS, "no_such_tracker", Fails)
    with pytest.raises(UserError, match="not installed"):
        tracker.check_tracker(tiny.cfg("plain", "TRACKER.NAME", "no_such_tracker"))
