"""Which student level learns from which teacher level."""

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec

from dpk_det.distill import Level
from dpk_det.errors import UserError, check_names


def pair_levels(
    student: Mapping[str, ShapeSpec],
    teacher: Mapping[str, ShapeSpec],
    names: Sequence[str] = (),
    key: str = "DISTILL.LEVELS",
) -> list[Level]:
    """Pair feature maps by stride, finest first.

    Of several maps that a teacher has of one stride (a dilated stage beside the one before it), the
    student learns from the one of its own name, else from the deepest, the last that is listed.

    Args:
        student, teacher: what ``backbone.output_shape()`` returns.
        names: the student's maps to pair; none means all that have a partner.
        key: where these names come from, for errors.

    Raises:
        UserError: when nothing pairs, or a named level is unknown, named twice or has no partner.
    """
    check_names(names, key)
    for name in names:
        if name not in student:
            raise UserError(
                f"{key} names '{name}', which the student lacks: choose from {list_maps(student)}."
            )
    deepest = {spec.stride: name for name, spec in teacher.items()}
    levels = []
    for name, spec in student.items():
        if names and name not in names:
            continue
        namesake = name in teacher and teacher[name].stride == spec.stride
        partner = name if namesake else deepest.get(spec.stride)
        if partner:
            channels = spec.channels, teacher[partner].channels
            levels.append(Level(name, partner, spec.stride, *channels))
        elif names:
            raise UserError(
                f"The student's level {name} (stride {spec.stride}) has no partner among the "
                f"teacher's {list_maps(teacher)}: take it out of {key}."
            )
    if not levels:
        raise UserError(
            f"Student and teacher share no feature level: the student has {list_maps(student)}, "
            f"the teacher {list_maps(teacher)}; choose backbones that have a stride in common."
        )
    return sorted(levels, key=lambda level: level.stride)


def list_maps(shapes: Mapping[str, ShapeSpec]) -> str:
    """What an error says of a backbone's maps: the name and stride of each."""
    return ", ".join(f"{name} (stride {spec.stride})" for name, spec in shapes.items())
