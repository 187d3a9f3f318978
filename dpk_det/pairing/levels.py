"""Pairs each student level with the teacher level that it learns from."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from detectron2.layers import ShapeSpec
from torch import nn

from dpk_det.distill import Level
from dpk_det.errors import UserError, check_names
from dpk_det.pairing.modules import (
    Layout,
    find_layouts,
    map_name,
    module_path,
    module_paths,
)
from dpk_det.pairing.teacher import Teacher

KEY = "DISTILL.LEVELS"
FROM = " from "
"""Separates the student's map from the teacher's in an entry of ``LEVELS`` that names both."""


def find_modules(model: nn.Module, teacher: Teacher, names: Sequence[str]) -> dict[str, Layout]:
    """Find the modules that ``LEVELS`` names in addition to the backbones' maps.

    Args:
        model: the student.
        teacher: from now on it returns the maps of its modules among these.
        names: as :func:`pair_levels` takes them.

    Returns:
        Layouts of the student's modules, by the names of their maps.

    Raises:
        UserError: as :func:`~.modules.find_layouts` does.
    """
    parts = [name.partition(FROM) for name in names if isinstance(name, str)]
    teacher.look_at(module_paths(teacher.model, [other for _, _, other in parts if other]))
    # an entry with one name may also mean the teacher's module of that path, if it returns a map
    same = module_paths(teacher.model, [own for own, _, other in parts if not other])
    teacher.look_at(same, lenient=True)
    return find_layouts(model, module_paths(model, [own for own, _, _ in parts]))


def pair_maps(
    model: nn.Module,
    teacher: Teacher,
    names: Sequence[str] = (),
    key: str = KEY,
    layouts: Mapping[str, Layout] = MappingProxyType({}),
) -> list[Level]:
    """Pair the maps of a student and its teacher by :func:`pair_levels`.

    Args:
        layouts: layouts of the student's modules, from :func:`find_modules`.
    """
    return pair_levels(
        model.backbone.output_shape(),
        teacher.model.backbone.output_shape(),
        names,
        key,
        *({x: layout.spec for x, layout in of.items()} for of in (layouts, teacher.layouts)),
    )


def pair_levels(
    student: Mapping[str, ShapeSpec],
    teacher: Mapping[str, ShapeSpec],
    names: Sequence[str] = (),
    key: str = KEY,
    own_modules: Mapping[str, ShapeSpec] = MappingProxyType({}),
    other_modules: Mapping[str, ShapeSpec] = MappingProxyType({}),
) -> list[Level]:
    """Pair feature maps by stride, finest first.

    A teacher may have several maps of one stride (a dilated stage and the stage before it). Then a
    student's map learns from the map of the same name, or otherwise from the deepest, listed last.

    Args:
        student: ``output_shape()`` of the student's backbone.
        teacher: ``output_shape()`` of the teacher's backbone.
        names: the student's maps to pair, by name or by a module's path; "OWN from OTHER" names the
            teacher's map too. Without names, all of the backbone's maps with a partner pair.
        key: config key of these names, for errors.
        own_modules: maps of the student's modules, by the names of :func:`~.modules.map_name`. They
            pair only if they are named.
        other_modules: the same for the teacher.

    Raises:
        UserError: when nothing pairs, or a named level is unknown, is named twice, has no partner
            or has a partner of another stride.
    """
    check_names(names, key)
    student_maps, teacher_maps = {**student, **own_modules}, {**teacher, **other_modules}
    wanted = [_parse(name, student_maps, teacher_maps, key) for name in names]
    levels = []
    for own, other in wanted or [(name, "") for name in student]:
        spec = student_maps[own]
        same = own in teacher_maps and teacher_maps[own].stride == spec.stride
        deepest = {of.stride: name for name, of in teacher.items()}
        partner = other or (own if same else deepest.get(spec.stride))
        if partner:
            channels = spec.channels, teacher_maps[partner].channels
            levels.append(Level(own, partner, spec.stride, *channels))
        elif names:
            raise UserError(
                f"The student's level {module_path(own)} (stride {spec.stride}) has no partner "
                f"among the teacher's {list_maps(teacher_maps)}: take it out of {key}."
            )
    if not levels:
        raise UserError(
            f"Student and teacher share no feature level: the student has {list_maps(student)}, "
            f"the teacher {list_maps(teacher)}; choose backbones that have a stride in common."
        )
    check_names([module_path(level.student) for level in levels], key)
    order = [*student_maps]
    return sorted(levels, key=lambda level: (level.stride, order.index(level.student)))


def _parse(
    entry: str, student: Mapping[str, ShapeSpec], teacher: Mapping[str, ShapeSpec], key: str
) -> tuple[str, str]:
    """Split an entry into the student's map and the teacher's, which may be ""."""
    own, _, other = entry.partition(FROM)
    for who, name, maps in (("student", own, student), ("teacher", other, teacher)):
        if name and name not in maps and map_name(name) not in maps:
            raise UserError(
                f"{key} names '{name}', which the {who} lacks: choose from {list_maps(maps)}, or "
                "give the path of a module of the model."
            )
    own, other = (x if x in maps else map_name(x) for x, maps in ((own, student), (other, teacher)))
    if other and student[own].stride != teacher[other].stride:
        raise UserError(
            f"{key} pairs '{entry}', whose strides are {student[own].stride} and "
            f"{teacher[other].stride}: name two maps of one stride."
        )
    return own, other


def list_maps(shapes: Mapping[str, ShapeSpec]) -> str:
    """List the name and stride of each map, for error messages."""
    return ", ".join(f"{module_path(name)} (stride {spec.stride})" for name, spec in shapes.items())
