"""jsonargparse's messages in one line: what is wrong, in which file, what may be meant."""

import re

from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.loggers import Logger

from methods.front import did_you_mean
from methods.merging import Config, find_class, parameters, subclasses

OPTION = re.compile(r"(?:does not accept option|Option) '([^']+)'")
CLASS = re.compile(r"given class_path '([^']+)'")
PARSER_KEY = re.compile(r'Parser key "([^"]+)":\s*')
NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
UNRECOGNIZED = re.compile(r"unrecognized arguments: (.*)", re.DOTALL)
NOISE = re.compile(
    r"^\s*(?:Does not validate|Subtypes|Errors|Given value|Subclass types"
    r"|- (?:a (?:class|dict)|Expected a <class 'NoneT"
    r"|Not a valid subclass)).*$",
    re.MULTILINE,
)


def explain(message: str, keys: list[str], config: Config) -> str:
    """One line for a message of the parser.

    Args:
        message: jsonargparse's.
        keys: all settings that the parser knows, dotted.
        config: the merged config, for where a setting comes from.
    """
    if found := UNRECOGNIZED.match(message):
        return _unrecognized(found[1], keys)
    place = PARSER_KEY.search(message)
    key = place[1] if place else ""
    classes = CLASS.findall(message)
    if found := OPTION.search(message):
        if not classes:  # a setting of the parser itself
            return f"{config.where(found[1])}no setting {found[1]!r}{did_you_mean(found[1], keys)}"
        name = classes[-1]
        cls = find_class(name)
        hint = did_you_mean(found[1], parameters(cls)) if cls else ""
        where = config.where(f"{key}.{found[1]}")
        return f"{where}{key}: {name.rpartition('.')[2]} has no setting {found[1]!r}{hint}"
    if found := NO_CLASS.search(message):
        known = {c.__name__ for c in subclasses(Callback, Logger, LightningDataModule)}
        return f"{config.where(key)}{key}: no class {found[1]!r}{did_you_mean(found[1], known)}"
    text = NOISE.sub("", message[place.end() :] if place else message)
    text = " ".join(text.replace("<class '", "").replace("'>", "").split()).lstrip("- ")
    return f"{config.where(key)}{key}: {text}" if key else text


def _unrecognized(arguments: str, keys: list[str]) -> str:
    option = arguments.split()[0].partition("=")[0]
    if not option.startswith("-"):
        return f"stray argument {option!r}; settings are given as --key value"
    known = [f"--{key}" for key in [*keys, "config", "print_config", "help"]]
    return f"command line: no setting {option}{did_you_mean(option, known)}"
