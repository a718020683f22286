"""jsonargparse's messages in one line: what is wrong, in which file, what may be meant."""

import re

from pytorch_lightning import Callback, LightningDataModule
from pytorch_lightning.loggers import Logger

from methods.front import did_you_mean
from methods.merging import Config, find_class, parameters, subclasses

OPTION = re.compile(
    r"(?:(?:Group '(?P<group>[^']+)' )?does not accept option|Option) '(?P<name>[^']+)'"
    r"|unrecognized arguments: --(?P<argument>[^=\s]+)"
)
CLASS = re.compile(r"given class_path '([^']+)':\s*")
ALTERNATIVE = re.compile(r"^ {4}- ", re.MULTILINE)
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
    if CLASS.search(message):  # what the other types that it could have been miss is no news
        message = "".join(ALTERNATIVE.split(message)[:2])
    places, classes = list(PARSER_KEY.finditer(message)), list(CLASS.finditer(message))
    key = ".".join(place[1] for place in places)
    if found := OPTION.search(message):
        if classes:
            path = found["argument"] or ".".join(filter(None, found.group("group", "name")))
            return _no_setting(path.split("."), classes[-1][1], key, config)
        name = found["name"]  # of the parser itself, dotted
        return f"{config.where(name)}no setting {name!r}{did_you_mean(name, keys)}"
    if found := NO_CLASS.search(message):
        known = {c.__name__ for c in subclasses(Callback, Logger, LightningDataModule)}
        return f"{config.where(key)}{key}: no class {found[1]!r}{did_you_mean(found[1], known)}"
    start = max((match.end() for match in (*places, *classes)), default=0)
    text = NOISE.sub("", message[start:])
    text = " ".join(text.replace("<class '", "").replace("'>", "").split()).lstrip("- ")
    return f"{config.where(key)}{key}: {text}" if key else text


def _no_setting(path: list[str], class_path: str, key: str, config: Config) -> str:
    """For a setting of a class, or of one of the groups among them (``augmentation.flip``)."""
    *groups, name = path
    cls: type | None = find_class(class_path)
    for group in groups:
        cls = parameters(cls)[group].annotation if cls else None
    hint = did_you_mean(name, parameters(cls)) if cls else ""
    owner = ".".join([class_path.rpartition(".")[2], *groups])
    return f"{config.where('.'.join([key, *path]))}{key}: {owner} has no setting {name!r}{hint}"


def _unrecognized(arguments: str, keys: list[str]) -> str:
    option = arguments.split()[0].partition("=")[0]
    if not option.startswith("-"):
        return f"stray argument {option!r}; settings are given as --key value"
    known = [f"--{key}" for key in [*keys, "config", "print_config", "help"]]
    return f"command line: no setting {option}{did_you_mean(option, known)}"
