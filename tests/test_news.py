"""Lines that are logged once, where somebody hears them."""

import logging

import pytest

from dpk_det.news import tell


class Kept(logging.Handler):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def unheard(monkeypatch):
    """``unheard()``: the project's logger and Detectron2's, set up by nobody, pytest included."""
    loggers = [logging.getLogger(name) for name in ("dpk_det", "detectron2")]
    level = loggers[0].level

    def unheard():
        for logger in loggers:
            monkeypatch.setattr(logger, "handlers", [])
            monkeypatch.setattr(logger, "propagate", False)
        return loggers

    yield unheard
    loggers[0].setLevel(level)


def test_a_line_goes_where_detectron2s_go(unheard):
    loggers, handler = unheard(), Kept()
    loggers[1].addHandler(handler)
    tell("%d of %s", 2, "these")
    tell("and again")
    assert handler.lines == ["2 of these", "and again"]


def test_a_logger_of_the_name_is_left_as_it_is(unheard):
    loggers, own, other = unheard(), Kept(), Kept()
    for logger, handler in zip(loggers, (own, other), strict=True):
        logger.addHandler(handler)
    loggers[0].setLevel(logging.WARNING)
    tell("too little to say")
    loggers[0].setLevel(logging.INFO)
    tell("once")
    assert own.lines == ["once"] and other.lines == []


def test_the_first_process_alone_speaks(unheard, monkeypatch):
    loggers, handler = unheard(), Kept()
    loggers[1].addHandler(handler)
    monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda: 1)
    tell("again")
    assert handler.lines == []
