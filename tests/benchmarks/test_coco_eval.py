"""The benchmark of COCO's evaluation: both find the same figures on what it makes up."""

import pytest


def test_both_evaluations_agree_and_a_table_is_printed(capsys):
    pytest.importorskip("faster_coco_eval")
    import coco_eval

    coco_eval.main(["--images", "20", "--objects", "100", "--detections", "10"])
    rows = [
        [x.strip() for x in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.split("\n")[2:4]
    ]
    assert [row[0] for row in rows] == ["COCOeval", "COCOeval_faster"]
    assert rows[0][2] == rows[1][2] and 0 < float(rows[0][2]) < 100
    assert float(rows[1][3]) < 1e-12 and float(rows[1][4]) < 1e-12
