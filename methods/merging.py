"""Several config files and the command line become one config, before the parser sees it.

jsonargparse alone resolves ``${...}`` within one file, without the command line's values, and drops
settings silently when a later file changes a class.
"""

import importlib
import inspect
import pkgutil
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from core.errors import MonofaceError
from methods.front import did_you_mean

Tree = dict[str, Any]


@dataclass
class Config:
    """A merged config.

    Attributes:
        tree: the settings of the files, references resolved also against the command line.
        sources: where each setting may come from, (name, tree), the strongest last.
        notes: what the user should know, one line each.
    """

    tree: Tree
    sources: list[tuple[str, Tree]]
    notes: list[str] = field(default_factory=list)

    def where(self, key: str) -> str:
        """The strongest source that has a dotted key, to put before a message; or nothing."""
        for name, tree in reversed(self.sources):
            if _has(tree, key.split(".")):
                return f"{name}: "
        return ""


def compose(paths: list[Path], arguments: list[str], defaults: Tree) -> Config:
    """Merges files; the command line counts in ``${...}`` and in the choice of classes.

    Dictionaries are merged key by key, lists are replaced, ``key+`` appends to a list. Where
    ``class_path`` changes, the ``init_args`` that the new class takes are kept. A note names the
    others, and what a list loses.

    Args:
        paths: YAML files, the strongest last.
        arguments: of the command line; they remain to be parsed, since only the parser knows their
            types.
        defaults: settings that are not in the files but may be referred to.

    Raises:
        MonofaceError: a file is no YAML mapping, a reference leads nowhere, a class does not exist.
    """
    notes: list[str] = []
    sources = [(_shown(path), _load(path)) for path in paths]
    tree: Tree = {}
    for _, source in sources:
        tree = _merge(tree, source, "", notes)
    line = _command_line(arguments, tree)
    tree = _merge(tree, _classes(line, tree), "", notes)
    sources.append(("command line", line))
    config = Config(tree, sources, notes)
    context = _merge(_merge(defaults, tree, "", []), line, "", [])
    config.tree = _only(_resolve(context, config), tree, line)
    _check_classes(config.tree, "", config)
    return config


def _load(path: Path) -> Tree:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise MonofaceError(f"{_shown(path)}{line}: not valid YAML: {problem}") from error
    except (OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise MonofaceError(f"{_shown(path)}: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, dict):
        raise MonofaceError(
            f"{_shown(path)}: wanted 'key: value' lines, got a {type(tree).__name__}"
        )
    return {str(key): value for key, value in tree.items()}


def _merge(base: Any, over: Any, key: str, notes: list[str]) -> Any:
    """``over`` on ``base``; neither is changed."""
    if isinstance(base, dict) and "class_path" in base and isinstance(over, str):
        over = {"class_path": over}
    if isinstance(base, str) and isinstance(over, dict) and set(over) == {"init_args"}:
        base = {"class_path": base}
    if not isinstance(over, dict):
        if isinstance(base, list) and (
            lost := Counter(map(_name, base)) - Counter(map(_name, _list(over)))
        ):
            note = f"{key} replaces {', '.join(lost)}; {key.rpartition('.')[2]}+ would add to them"
            notes.append(note)
        return over
    merged = dict(base) if isinstance(base, dict) else {}
    old, new = merged.get("class_path"), over.get("class_path")
    if old is not None and new is not None and old != new:
        merged["init_args"] = _kept(merged.get("init_args") or {}, old, new, key, notes)
    for name, value in over.items():
        path = f"{key}.{name}".lstrip(".")
        if name.endswith("+"):
            before = merged.get(name[:-1]) or []
            merged[name[:-1]] = [*_list(before), *_list(value)]
        else:
            merged[name] = _merge(merged.get(name), value, path, notes)
    return merged


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _name(entry: Any) -> str:
    """Of an entry of a list: its class's, without the modules."""
    path = entry.get("class_path", entry) if isinstance(entry, dict) else entry
    return str(path).rpartition(".")[2]


def _kept(init_args: Tree, old: str, new: str, key: str, notes: list[str]) -> Tree:
    """The arguments that a new class takes; all if it is not found: the parser will complain."""
    found = find_class(new, old)
    if found is None:
        return init_args
    accepted = parameters(found)
    dropped = [name for name in init_args if name not in accepted]
    if dropped:
        note = f"{key}: {found.__name__} does not take {', '.join(dropped)}: dropped"
        if note not in notes:
            notes.append(note)
    return {name: value for name, value in init_args.items() if name in accepted}


def find_class(name: str, like: str = "") -> type | None:
    """A class by its path, or by its bare name among the imported relatives of ``like``."""
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError:
            return None
        return found if isinstance(found, type) else None
    other = find_class(like) if "." in like else None
    relatives = subclasses(*other.__mro__[:-1]) if other else []
    return next((c for c in relatives if c.__name__ == name), None)


def subclasses(*bases: type) -> list[type]:
    """All imported classes below some."""
    direct: list[type] = []
    for base in bases:
        direct += type.__subclasses__(base)
    return [*direct, *(subclasses(*direct) if direct else [])]


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The keywords that a class takes, through ``**kwargs`` of its bases."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(vars(base)["__init__"]).parameters
            found = {**own, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                break
    found.pop("self", None)
    return found


def _command_line(arguments: list[str], tree: Tree) -> Tree:
    """The settings ``--a.b value`` as a tree; what is no plain setting is left to the parser."""
    line: Tree = {}
    for part, following in pairwise([*arguments, ""]):
        name, equals, value = part.partition("=")
        if not name.startswith("--") or name.endswith("+") or not (equals or following):
            continue
        if not equals and following.startswith("--"):
            continue
        _set(line, tree, name[2:].split("."), _value(value if equals else following))
    return line


def _set(node: Tree, like: Tree, keys: list[str], value: Any) -> None:
    """Sets a key; ``data.size`` is short for ``data.init_args.size`` if data is a class in like."""
    first, *rest = keys
    if "class_path" in like and first not in ("class_path", "init_args", "dict_kwargs"):
        _set(node.setdefault("init_args", {}), like.get("init_args") or {}, keys, value)
        return
    before = node.get(first)
    if rest:
        inner = like.get(first)
        if isinstance(inner, list):  # --trainer.callbacks.patience 3: of the last one
            return
        if not isinstance(before, dict):
            before = node[first] = {} if before is None else {"class_path": before}
        _set(before, inner if isinstance(inner, dict) else {}, rest, value)
    elif isinstance(before, dict) and isinstance(value, str):
        before["class_path"] = value
    else:
        node[first] = value


def _value(text: str) -> Any:
    try:
        return dict(OmegaConf.create(f"value: {text}"))["value"]
    except (yaml.YAMLError, OmegaConfBaseException):
        return text


def _classes(line: Any, tree: Any) -> Tree:
    """The part of the command line that changes a class of the files."""
    changes: Tree = {}
    for name, value in line.items():
        below = tree.get(name)
        if not isinstance(below, dict):
            continue
        if isinstance(value, str) and "class_path" in below:
            changes[name] = {"class_path": value}
        elif isinstance(value, dict):
            if isinstance(value.get("class_path"), str) and "class_path" in below:
                changes[name] = {"class_path": value["class_path"]}
            if deeper := _classes(value, below):
                changes[name] = {**changes.get(name, {}), **deeper}
    return changes


def _resolve(context: Tree, config: Config) -> Tree:
    try:
        resolved: Any = OmegaConf.to_container(
            OmegaConf.create(context), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        problem = str(error).splitlines()[0]
        if isinstance(error, MissingMandatoryValue):
            problem = "must be given, it is ??? so far"
        elif "Interpolation key" in problem:
            wanted = problem.split("'")[1]
            known = list(_keys(context))
            problem = f"${{{wanted}}} refers to nothing{did_you_mean(wanted, known)}"
        raise MonofaceError(f"{config.where(key)}{key}: {problem}") from error
    return resolved


def _keys(tree: Tree, prefix: str = "") -> Any:
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _has(tree: Any, key: list[str]) -> bool:
    """Whether a tree has a key; looks through lists, ``init_args`` and ``key+``."""
    if not key:
        return True
    if isinstance(tree, list):
        return any(_has(item, key) for item in tree)
    if not isinstance(tree, dict):
        return False
    first = key[0].split("[")[0]
    if any(name in tree and _has(tree[name], key[1:]) for name in (first, f"{first}+")):
        return True
    return isinstance(tree.get("init_args"), dict) and _has(tree["init_args"], key)


def _only(resolved: Any, like: Any, line: Any) -> Any:
    """The resolved values of the files' keys, but for those that the command line gives itself."""
    if not isinstance(resolved, dict) or not isinstance(like, dict):
        return resolved
    given = line if isinstance(line, dict) else {}
    return {
        name: _only(resolved[name], value, given.get(name))
        for name, value in like.items()
        if isinstance(value, dict) or name == "class_path" or name not in given
    }


def _check_classes(tree: Any, key: str, config: Config) -> None:
    """Every class_path with a module must lead to something."""
    if isinstance(tree, list):
        for item in tree:
            _check_classes(item, key, config)
    if not isinstance(tree, dict):
        return
    path = tree.get("class_path")
    if isinstance(path, str) and "." in path:
        _check_class(path, f"{config.where(f'{key}.class_path')}{key}.class_path")
    for name, value in tree.items():
        _check_classes(value, f"{key}.{name}".lstrip("."), config)


def _check_class(path: str, where: str) -> None:
    module, _, name = path.rpartition(".")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, something that it needs is not
        raise MonofaceError(
            f"{where}: no module {error.name!r}{did_you_mean(error.name, _siblings(error.name))}"
        ) from error
    if not hasattr(found, name):
        classes = [n for n, value in vars(found).items() if isinstance(value, type)]
        raise MonofaceError(f"{where}: {module} has no class {name!r}{did_you_mean(name, classes)}")


def _siblings(module: str) -> list[str]:
    """The modules of the package in which one was looked for."""
    package, dot, _ = module.rpartition(".")
    places = importlib.import_module(package).__path__ if package else None
    return [f"{package}{dot}{info.name}" for info in pkgutil.iter_modules(places)]


def _shown(path: Path) -> str:
    """A path as short as possible: relative to the working folder if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
