"""``dpk-det``: one program for all commands of the project, so that none needs a clone."""

import argparse
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "init": ("dpk_det.project.command", "write the files of a comparison from photos"),
    "train": ("dpk_det.engine.train", "train a teacher, or a student with or without one"),
    "check": ("dpk_det.engine.train", "see whether a training would run to its end"),
    "compare": ("dpk_det.comparison.command", "train what a suite names, and report"),
    "tune": ("dpk_det.comparison.tuning.command", "find good values of a suite's keys"),
    "teachers": ("dpk_det.comparison.teachers", "rank the teachers of a suite"),
    "predict": ("dpk_det.deploy.predict", "draw what a trained detector finds in images"),
    "export": ("dpk_det.deploy.export", "write the plain student: weights, TorchScript or ONNX"),
}
"""Name -> module whose ``run`` is called, and the purpose of the command."""

_READ_A_CONFIG = ("train", "check", "predict", "export")


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``dpk-det COMMAND ...``; without ``argv``, take the arguments from ``sys.argv``.

    A command with a script in ``tools/`` has the script's options. If it takes ``--config-file``,
    the file may also come first, without the option: ``dpk-det train my/student.yaml``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="dpk-det",
        description="Distil big object detectors into small ones.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items())
        + "\n\nEach has its own options: dpk-det COMMAND --help.",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    if not argv:
        parser.print_help(sys.stderr)
        parser.exit(2)
    command = parser.parse_args(argv[:1]).command
    rest = argv[1:]
    if command in _READ_A_CONFIG and rest and rest[0].endswith((".yaml", ".yml")):
        rest.insert(0, "--config-file")
    if command == "check":
        rest.insert(0, "--check")
    sys.argv[0] = f"dpk-det {command}"  # the command's own help shows it
    try:
        import_module(COMMANDS[command][0]).run(rest)
        sys.stdout.flush()
    except BrokenPipeError:
        reader = select.poll()
        reader.register(sys.stdout, 0)
        if not reader.poll(0):  # another pipe broke, not the output
            raise
        # the reader has closed the output, as `head` does; that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
