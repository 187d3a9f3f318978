"""The benchmark of reading a COCO JSON: its file is one, and all readers read it."""

import json

import coco_json


def test_the_file_is_coco_and_all_readers_read_it(tmp_path):
    path = tmp_path / "a.json"
    coco_json.write(path, 50)
    content = json.loads(path.read_text())
    assert len(content["annotations"]) == 50 and len(content["images"]) == 6
    for reader in coco_json.READERS:
        seconds, memory = coco_json.read(str(path), reader)
        assert seconds > 0 and memory > 0
