"""Methods by name, with the keys that each needs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A way to distil.

    Attributes:
        title: title of the student.
        inherits: whether the student starts with the teacher's neck and heads.
        keys: YAML lines below ``DISTILL``; ``{fifth}`` stands for a fifth of the steps.
        reason: why one would choose it.
    """

    title: str
    inherits: bool
    keys: str
    reason: str


PRESETS = {
    "dpk-inherit": Preset(
        "DPK, inherits",
        True,
        """\
METHODS: ["dpk"]
DPK: # heads that come from the teacher want the teacher's own map
  TARGET: "raw"
  LOSS: "cwd"
  WEIGHT: 50.0
""",
        "the student starts with the teacher's neck and heads, and DPK compares maps channel by "
        "channel",
    ),
    "dpk": Preset(
        "DPK",
        False,
        """\
METHODS: ["dpk"]
DPK:
  WEIGHT: 48.0
""",
        "the student has heads of its own, and learns the teacher's map through DPK's transformer",
    ),
    "dpk+dkd": Preset(
        "DPK + DKD",
        False,
        """\
METHODS: ["dpk", "dkd"]
WARMUP_ITERS: {fifth} # without it one training in four failed
DPK:
  WEIGHT: 48.0
""",
        "the student has heads of its own, and learns the teacher's map and classes, which was "
        "best for such students",
    ),
    "dpk-paper": Preset(
        "DPK, the paper's form",
        False,
        """\
METHODS: ["dpk"]
DPK:
  FORM: "paper"
  WEIGHT: 1.0
""",
        "for comparison with the paper; in the measurements it gained nothing",
    ),
    "pkd": Preset(
        "PKD",
        False,
        """\
METHODS: ["pkd"]
PKD:
  WEIGHT: 32.0
""",
        "the cheapest method for a student with heads of its own, level with DPK",
    ),
    "pkd+dkd": Preset(
        "PKD + DKD",
        False,
        """\
METHODS: ["pkd", "dkd"]
WARMUP_ITERS: {fifth} # as for DPK + DKD, where one training in four failed without it
PKD:
  WEIGHT: 32.0
""",
        "cheaper than DPK + DKD, and level with it",
    ),
    "cwd-inherit": Preset(
        "CWD, inherits",
        True,
        """\
METHODS: ["cwd"]
CWD:
  WEIGHT: 33.0
""",
        "the cheapest method for a student that starts with the teacher's neck and heads, level "
        "with DPK",
    ),
}
"""Name -> preset. The weights are those of :data:`EVIDENCE`."""

DEFAULT = "dpk-inherit"
EVIDENCE = "docs/results.md#few"
"""Page with the measurements of the presets."""
