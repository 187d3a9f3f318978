#!/usr/bin/env python
"""List every config key that dpk_det adds, with default and meaning, as Markdown.

python tools/list_keys.py
python tools/list_keys.py --imports my_project
"""

import argparse

from dpk_det.config.imports import import_modules
from dpk_det.config.keys import describe_keys
from dpk_det.engine.ends import exit_on_user_error

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imports", nargs="+", default=[], help="modules to import before")
    args = parser.parse_args()
    with exit_on_user_error():
        import_modules(args.imports, "--imports")
        print(describe_keys(), end="")
