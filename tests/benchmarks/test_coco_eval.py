"""The benchmark of COCO's evaluation: both packages find the same figures."""

import json

import pytest


@pytest.mark.parametrize("given", [True, False])
def test_both_evaluations_agree_and_a_table_is_printed(capsys, tmp_path, given):
    pytest.importorskip("faster_coco_eval")
    import coco_eval

    options = ["--images", "20", "--objects", "100"]
    if given:
        content = coco_eval.make_dataset(10, 60)
        for entry in content["annotations"]:
            entry["category_id"] = 7  # the file's classes, and no others, are detected
        content["categories"] = [{"id": 7, "name": "cell"}]
        (tmp_path / "val.json").write_text(json.dumps(content))
        options = ["--annotations", str(tmp_path / "val.json")]
    coco_eval.main([*options, "--detections", "10"])
    rows = [
        [x.strip() for x in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.split("\n")[2:4]
    ]
    assert [row[0] for row in rows] == ["COCOeval", "COCOeval_faster"]
    assert rows[0][2] == rows[1][2] and 0 < float(rows[0][2]) < 100
    assert float(rows[1][3]) < 1e-12 and float(rows[1][4]) < 1e-12
