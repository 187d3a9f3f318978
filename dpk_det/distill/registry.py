"""Finds distillers by name, and combines several of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dpk_det.distill.arguments import check_arguments
from dpk_det.distill.contract import Distiller, Features, Level, Targets
from dpk_det.errors import UserError, check_names, find


class Combined(Distiller):
    """Several methods side by side; their losses and metrics keep their own names.

    Attributes:
        methods: the methods, by name.
        owners: name of each loss of the last step to the name of its method.
    """

    def __init__(self, methods: dict[str, Distiller]) -> None:
        super().__init__([])
        self.methods = nn.ModuleDict(methods)
        self.owners: dict[str, str] = {}
        self.heads = frozenset().union(*(method.heads for method in methods.values()))

    def forward(
        self, student: Features, teacher: Features, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """The union of the methods' losses."""
        losses: dict[str, Tensor] = {}
        self.metrics = {}
        for name, method in self.methods.items():
            method.progress = self.progress
            found = method(student, teacher, targets)
            losses = join_losses(losses, found)
            self.owners |= dict.fromkeys(found, name)
            self.metrics.update(method.metrics)
        return losses


def join_losses(losses: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return both sets of losses in one dict.

    Raises:
        UserError: when they share a name, because one of the two losses would be lost.
    """
    if shared := losses.keys() & others.keys():
        raise UserError(
            f"Two losses are named '{min(shared)}', of two methods or of a method and the model: "
            "rename one."
        )
    return {**losses, **others}


DISTILLERS: dict[str, Callable[..., Distiller]] = {}


def register_distiller(name: str) -> Callable[[type[Distiller]], type[Distiller]]:
    """Class decorator: register a distiller under a name, as in ``DISTILL.METHODS: [name]``.

    Its constructor takes the levels and keyword arguments. In capitals, these arguments are the
    keys of the config node ``DISTILL.NAME``, with the same defaults; see :mod:`.arguments`.
    :func:`build_distiller` checks their values by the annotations, so the constructor need not.
    """

    def register(cls: type[Distiller]) -> type[Distiller]:
        DISTILLERS[name] = cls
        return cls

    return register


def build_distiller(
    methods: Mapping[str, Mapping[str, Any]],
    levels: Sequence[Level] | Mapping[str, Sequence[Level]],
) -> Distiller:
    """Build several distillers side by side.

    Args:
        methods: name of each to its keyword arguments. These may include ``levels``, names of the
            student's maps. Then the method learns from these levels alone.
        levels: the levels to distil; or a mapping of each method's name to its levels.

    Raises:
        UserError: for an unknown method (the message names the nearest known one), no method, or
            wrong arguments, as :func:`~dpk_det.distill.arguments.check_arguments` describes.
    """
    if not isinstance(methods, Mapping):
        raise UserError(
            f"The methods are {methods!r}: write each with its arguments, {{'dpk': {{}}}}."
        )
    if not methods:
        raise UserError(f"No method is named: choose from {', '.join(sorted(DISTILLERS))}.")
    built = {}
    for name, given in methods.items():
        constructor = find(DISTILLERS, name, "distiller")
        own = list(levels[name] if isinstance(levels, Mapping) else levels)
        if isinstance(given, Mapping) and getattr(constructor, "takes_levels", True):
            own = _choose(own, given.get("levels", ()), f"DISTILL.{name.upper()}.LEVELS")
            given = {key: value for key, value in given.items() if key != "levels"}
        built[name] = constructor(own, **check_arguments(name, constructor, given))
    return Combined(built)


def _choose(levels: list[Level], names: Sequence[str], key: str) -> list[Level]:
    check_names(names, key)
    known = {level.student: level for level in levels}
    for name in names:
        find(known, name, f"level ({key})")
    return [level for name, level in known.items() if not names or name in names]
