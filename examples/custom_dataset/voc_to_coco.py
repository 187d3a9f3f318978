#!/usr/bin/env python
"""Turn a folder of Pascal VOC's XML files into one JSON file in COCO's format.

python voc_to_coco.py VOC/Annotations train.json --classes cat dog --split VOC/train.txt

`dpk-det init` does the same for a new project. An object that is marked difficult becomes a crowd
(iscrowd: 1): training leaves it out, and the evaluation neither requires nor punishes it, like
VOC's own evaluation. --keep-difficult makes it an object like any other.
"""

import argparse
import json
from pathlib import Path

from dpk_det.data.voc import voc_files, voc_to_coco
from dpk_det.engine.ends import exit_on_user_error
from dpk_det.files import write_whole


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="folder of XML files")
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--classes", nargs="+", required=True, help="in the order they are to have")
    parser.add_argument("--split", type=Path, help="text file: one name of an XML file a line")
    parser.add_argument("--keep-difficult", action="store_true", help="as objects like any other")
    args = parser.parse_args()
    with exit_on_user_error():
        files = voc_files(args.annotations, args.split)
        content = voc_to_coco(files, args.classes, args.keep_difficult)
        write_whole(args.output, json.dumps(content))
    print(
        f"Wrote {args.output}: {len(content['images'])} images, {len(content['annotations'])} "
        f"boxes, {sum(x['iscrowd'] for x in content['annotations'])} of them crowds."
    )


if __name__ == "__main__":
    main()
