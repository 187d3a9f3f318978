#!/usr/bin/env python
"""Train a teacher, a plain student and a DPK student, on shapes by default, and report.

Called again, it skips what is done and resumes what was interrupted.
"""

import argparse
import signal
import sys
from pathlib import Path

from dpk_det.engine.demo import demo
from dpk_det.engine.launch import exit_on_user_error

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--configs",
        type=Path,
        default=Path("configs/shapes"),
        help="folder of teacher.yaml, plain.yaml, inherit.yaml and dpk.yaml",
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="where to write")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="seeds of the students")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each training")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trainings end as well
    with exit_on_user_error():
        print(demo(args.configs, args.output, args.seeds, args.workers, args.threads))
    print(f"\nThe report is in {args.output / 'report.md'}.")
