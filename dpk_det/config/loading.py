"""Reads a config file and overrides into Detectron2's defaults plus dpk_det's keys."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from dpk_det.config.files import read_config_file
from dpk_det.config.imports import add_keys, import_modules
from dpk_det.config.key_table import GONE
from dpk_det.config.keys import add_dpk_config
from dpk_det.config.shipped import find_config
from dpk_det.config.values import check_values, flatten
from dpk_det.errors import REFUSALS, UserError, nearest


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Read a config file and overrides into Detectron2's defaults plus dpk_det's keys.

    Keys with a float default also accept whole numbers, which Detectron2 alone refuses. The modules
    of ``IMPORTS`` are imported first.

    Args:
        config_file: path of a file, with Detectron2's ``_BASE_`` chains. A path below ``configs/``
            finds the project's own files from every working directory.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``, as on the command line.

    Raises:
        UserError: if the file is absent, is no YAML or holds code, a key is unknown (the error
            names the nearest one), or a value has the wrong type or makes no sense.
    """
    path = find_config(config_file)
    if config_file and not Path(path).is_file():
        raise UserError(f"There is no config file {config_file}: give --config-file a path to one.")
    check_pairs(opts)
    content = _without_gone(read_config_file(path)) if config_file else {}
    overrides = list(zip(opts[::2], opts[1::2], strict=True))
    imports = _imports(content, overrides)
    modules = import_modules(imports)
    cfg = get_cfg()
    add_dpk_config(cfg)
    known = {key for key, _ in flatten(cfg)}
    add_keys(cfg, modules)
    _merge(cfg, content, f"in {config_file}")
    for key, value in overrides:
        _merge(cfg, _nested(key, value), "on the command line")
    cfg.IMPORTS = imports
    check_values(cfg, known)
    return cfg


def _without_gone(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Drop keys of earlier versions if they ask for what is now the only behaviour."""
    kept = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in GONE and value == GONE[name]:
            continue
        if isinstance(value, Mapping):
            rest = _without_gone(value, f"{name}.")
            if value and not rest:
                continue
            value = rest
        kept[key] = value
    return kept


def _imports(content: Mapping[str, Any], overrides: Iterable[tuple[str, Any]]) -> list[Any]:
    """Return the modules that the file and the overrides name, each once."""
    given = [content.get("IMPORTS", []), *(value for key, value in overrides if key == "IMPORTS")]
    named = [CN._decode_cfg_value(x) if isinstance(x, str) else x for x in given]
    for value in named:
        if not isinstance(value, list | tuple):
            raise UserError(f"IMPORTS is {value!r}: write a list of modules, ['my_project'].")
    return list(dict.fromkeys(name for value in named for name in value))


def _merge(cfg: CN, given: dict[str, Any], where: str) -> None:
    if given.get("VERSION", cfg.VERSION) != cfg.VERSION:
        raise UserError(
            f"VERSION is {given['VERSION']} ({where}), but Detectron2's configs are of version "
            f"{cfg.VERSION}: write the keys of that version."
        )
    try:
        cfg.merge_from_other_cfg(CN(_with_floats(given, cfg)))
    except KeyError as e:
        raise _unknown_key(str(e.args[0]).rpartition(": ")[2], cfg, where) from e
    except (*REFUSALS, MemoryError) as e:
        raise _unfit(str(e), where) from e


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _with_floats(given: dict[str, Any], cfg: CN) -> dict[str, Any]:
    def fit(value: Any, default: Any) -> Any:
        if isinstance(value, dict) and isinstance(default, CN):
            return _with_floats(value, default)
        decoded = CN._decode_cfg_value(value) if isinstance(value, str) else value
        return float(decoded) if type(decoded) is int and type(default) is float else value

    return {key: fit(value, cfg.get(key)) for key, value in given.items()}


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "detectron2.config.config.CfgNode": "keys below it",
}


def _unfit(message: str, where: str) -> UserError:
    # "Type mismatch (<class 'int'> vs. <class 'str'>) with values (...) for config key: SEED"
    types, key = re.findall(r"<class '([\w.]+)'>", message), message.rpartition("config key: ")[2]
    if len(types) == 2 and key != message:
        wanted, found = (_KINDS.get(name, name) for name in types)
        return UserError(f"{key} ({where}) takes {wanted}, not {found}: correct it.")
    return UserError(f"A value {where} does not fit ({' '.join(message.split())}): correct it.")


def check_pairs(opts: Sequence[str]) -> None:
    """Check that overrides are pairs of a key and its value.

    Raises:
        UserError: if their number is odd.
    """
    if len(opts) % 2:
        raise UserError(f"The overrides {list(opts)} are no pairs: write KEY VALUE KEY VALUE ...")


def _unknown_key(key: str, cfg: CN, where: str) -> UserError:
    near = nearest(key, [key for key, _ in flatten(cfg)], 0.4)
    hint = f"did you mean {near}?" if near else "take it out."
    if key in ("title", "seeds", "baseline", "methods", "teachers"):
        hint = "it belongs to a suite, which dpk-det compare takes."
    return UserError(f"There is no config key {key} ({where}): {hint}")
