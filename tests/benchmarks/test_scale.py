"""The arithmetic of many GPUs, on figures of which the outcome is known."""

import json

import pytest
import scale


@pytest.fixture
def measured(tmp_path):
    """A step of which each image takes 1 TFLOP, the teacher as much, and DPK a tenth of that."""
    work = {"plain": 1000.0, "floor": 2000.0, "dpk": 2100.0}
    trained = {"plain": 10_000_000, "floor": 10_000_000, "dpk": 15_000_000}

    def run(images):
        variants = {
            name: {
                "gflop": images * work[name],
                "trained": trained[name],
                "peak_mb": 1024.0 * images,
            }
            for name in work
        }
        return {"images": images, "variants": variants}

    path = tmp_path / "step.json"
    path.write_text(json.dumps({"runs": [run(1), run(2)]}))
    return path


def cells(text):
    return [[x.strip() for x in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]


def test_tables_hold_what_is_reckoned_by_hand(measured, capsys):
    argv = [str(measured), "--gpus", "1", "8", "16", "--images", "2", "--tflops", "100"]
    argv += ["--share", "0.5", "--within", "200", "--between", "100", "--epochs", "1"]
    scale.main(argv)
    rows = cells(capsys.readouterr().out)
    by_name = {row[0]: row for row in rows}
    assert by_name["dpk"][1:] == ["2.10", "4.20", "33.60", "15.0", "1.0", "2.0", "16.0"]
    # 2 TFLOP at 50 TFLOP/s; a ring of 8 sends 7/4 of 40 MB at 200 GB/s, one of 16 15/8 at 100
    assert by_name["1"][2] == "40 + 0" and by_name["8"][2] == "40 + 0"
    assert by_name["16"][1:3] == ["32", "40 + 1"]
    assert by_name["16"][6] == "84 + 1"
    assert by_name["1"][3] == f"{118_000 / 2 * 0.04 / 3600:.2f}"
    # a teacher that is twice as fast takes 20 ms for 40
    assert by_name["2 times"][1:] == ["1.50", "1.60"]


def test_one_size_is_not_enough(measured, capsys):
    content = json.loads(measured.read_text())
    measured.write_text(json.dumps({"runs": content["runs"][:1]}))
    with pytest.raises(SystemExit):
        scale.main([str(measured)])
    assert "no steps of 1 and 2 images" in capsys.readouterr().err
