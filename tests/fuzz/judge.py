"""Tries a case and says what came of it."""

import contextlib
import os
import shutil
import tempfile
import traceback
from pathlib import Path

from cases import REFUSED, WORKS, Case
from world import no_new_datasets

from dpk_det.errors import UserError

SENTENCE, RIGHT = "refused in a sentence", "works"
TRACEBACK, HANG = "traceback", "hang"
ACCEPTED, REFUSED_WRONGLY = "accepted but wrong", "refused but right"
OUTCOMES = (SENTENCE, RIGHT, TRACEBACK, HANG, ACCEPTED, REFUSED_WRONGLY)
GOOD = (SENTENCE, RIGHT)

LONGEST = 1500
"""Characters of a sentence."""


def judge(case: Case) -> tuple[str, str]:
    """Try a case in a new folder, which is the working directory as well.

    Returns:
        One of the outcomes, and what was said.
    """
    folder = Path(tempfile.mkdtemp(prefix="case-"))
    before = os.getcwd()
    os.chdir(folder)
    try:
        with no_new_datasets():
            return _judge(case, folder)
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _judge(case: Case, folder: Path) -> tuple[str, str]:
    try:
        prove = case.accept(folder)
    except UserError as e:
        return _judge_sentence(case, str(e))
    except BaseException as e:
        return TRACEBACK, _last_lines(e)
    if case.expect == REFUSED:
        return ACCEPTED, "no word of what is wrong"
    try:
        prove()
    except BaseException as e:
        return ACCEPTED, _last_lines(e)
    return RIGHT, ""


def _judge_sentence(case: Case, sentence: str) -> tuple[str, str]:
    if not sentence or "\n" in sentence or len(sentence) > LONGEST:
        return TRACEBACK, f"no sentence, but {len(sentence)} characters: {sentence[:500]}"
    return (REFUSED_WRONGLY if case.expect == WORKS else SENTENCE), sentence


def _last_lines(e: BaseException) -> str:
    lines = "".join(traceback.format_exception(e)).strip().splitlines()
    places = [x.strip() for x in lines if x.strip().startswith("File ")][-3:]
    return " | ".join([f"{type(e).__name__}: {str(e)[:300]}", *reversed(places)])


@contextlib.contextmanager
def silence():
    """Whatever this process writes to stdout and stderr is lost."""
    saved = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for handle in (*saved, nowhere):
            os.close(handle)
