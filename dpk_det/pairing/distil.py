"""Makes a model distil in one call: pairs its levels, builds the distiller, attaches it."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from dpk_det.config.methods import method_arguments
from dpk_det.distill import Level, build_distiller
from dpk_det.news import tell
from dpk_det.pairing.attach import attach_distiller, check_backbone
from dpk_det.pairing.levels import find_modules, pair_maps
from dpk_det.pairing.modules import module_path
from dpk_det.pairing.schedule import schedule_arguments
from dpk_det.pairing.teacher import Teacher, build_teacher


def distil(
    model: nn.Module,
    teacher: Teacher,
    methods: Mapping[str, Mapping[str, Any]],
    levels: Sequence[str] = (),
    **schedule: Any,
) -> nn.Module:
    """Pair a model's levels with its teacher's, build the distiller, attach it, and log all three.

    Args:
        model: as :func:`~.attach.attach_distiller` takes it.
        teacher: from :func:`~dpk_det.pairing.teacher.load_teacher`.
        methods: name of each method to its arguments, ``{"dpk": {"weight": 12.0}, "dkd": {}}``.
            The arguments may include the method's own ``levels``.
        levels: names of the model's feature maps that learn, as :func:`~.levels.pair_levels` takes
            them. If empty, all of the backbone's maps that pair by stride learn.
        schedule: as :func:`~.attach.attach_distiller` takes it.

    Returns:
        The model itself, so that ``LazyCall(distil)(model=..., teacher=..., methods=...)`` can
        take the place of a model.

    Raises:
        UserError: when levels do not pair, or the distiller cannot be built or attached.
    """
    check_backbone(model)
    own = _own_levels(methods)
    layouts = find_modules(model, teacher, [*levels, *chain(*own.values())])
    common = pair_maps(model, teacher, levels, layouts=layouts)
    pairs = dict.fromkeys(methods, common) if isinstance(methods, Mapping) else {}
    for name, names in own.items():
        key = f"DISTILL.{name.upper()}.LEVELS"
        pairs[name] = pair_maps(model, teacher, names, key, layouts)
        methods = {**methods, name: {**methods[name], "levels": [x.student for x in pairs[name]]}}
    distiller = build_distiller(methods, pairs)
    attach_distiller(model, teacher, distiller, layouts, **schedule)
    tell(
        "%s learns by %s from a %s teacher: %s. The distiller has %s parameters.",
        type(model).__name__,
        ", ".join(methods),
        type(teacher.model).__name__,
        _describe(pairs),
        f"{sum(p.numel() for p in distiller.parameters()):,}",
    )
    return model


def _own_levels(methods: Any) -> dict[str, Sequence[str]]:
    """The levels that methods name themselves. build_distiller reports wrong arguments."""
    if not isinstance(methods, Mapping):
        return {}
    return {
        name: arguments["levels"]
        for name, arguments in methods.items()
        if isinstance(arguments, Mapping) and arguments.get("levels")
    }


def _describe(pairs: Mapping[str, Sequence[Level]]) -> str:
    lines = {
        method: "; ".join(
            f"{module_path(x.student)} from {module_path(x.teacher)} (stride {x.stride}, "
            f"{x.student_channels} channels from {x.teacher_channels})"
            for x in levels
        )
        for method, levels in pairs.items()
    }
    if len({*lines.values()}) == 1:
        return next(iter(lines.values()))
    return ". ".join(f"{method}: {line}" for method, line in lines.items())


def attach_from_config(model: nn.Module, cfg: CfgNode) -> nn.Module:
    """Attach what ``cfg.DISTILL`` describes to a model and return that model.

    Raises:
        UserError: when the teacher cannot be built, and as :func:`distil` does.
    """
    return distil(
        model,
        build_teacher(cfg),
        method_arguments(cfg),
        cfg.DISTILL.LEVELS,
        max_iter=cfg.SOLVER.MAX_ITER,
        **schedule_arguments(cfg),
    )
