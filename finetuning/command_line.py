"""From flags and a YAML file to a checked dataclass; every mistake is found before any is reported.

A script's settings are the fields of one dataclass. A field made with `setting()` becomes the flag `--its_name` and the
key `its_name` of a `--config` file; flags win over the file, the file over the defaults.
"""

import argparse
import difflib
import inspect
import math
import shlex
import signal
import sys
import types
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol, TypeVar, Union, get_args, get_origin

import yaml

from finetuning.errors import UserError, leave_with


class Config(Protocol):
    """A dataclass of settings that can say what is wrong with it."""

    __dataclass_fields__: dict[str, Field]

    def mistakes(self) -> list[str]:
        """What no single value shows: one line for each mistake, naming the flag and the fix."""
        ...


ConfigType = TypeVar("ConfigType", bound=Config)


def setting(
    default: Any = MISSING,
    *,
    help: str,  # the word that argparse uses
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field with its help text and the range of its value or values."""
    metadata = {"help": help, "above": above, "at_least": at_least, "at_most": at_most}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse(config_class: type[ConfigType], arguments: list[str] | None = None) -> ConfigType:
    """Read the command line (by default this process's) into a `config_class`.

    `--help` and `--print_config` print to standard output and leave with status 0.

    Raises:
        UserError: all mistakes at once, a line each.
    """
    parser = _Parser(
        description=inspect.cleandoc(config_class.__doc__ or ""), allow_abbrev=False, formatter_class=_HelpFormatter
    )
    parser.add_argument("--config", nargs="*", metavar="FILE", help="a YAML file of settings; flags win over it")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML for --config, and stop")
    for each in fields(config_class):
        if _plain_type(each.type) is bool:
            options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        else:  # read as strings whatever their number, so that nothing stops at the first mistake
            options = {"nargs": "*", "metavar": _metavar(each)}
        parser.add_argument(f"--{each.name}", default=argparse.SUPPRESS, help=_help(each).replace("%", "%%"), **options)

    given, unknown = parser.parse_known_args(arguments)
    mistakes = _unknown_words(unknown, config_class)
    values: dict[str, Any] = {}
    if given.config is not None:
        values.update(_read_yaml(given.config, config_class, mistakes))
    flags = {name: value for name, value in vars(given).items() if name not in ("config", "print_config")}
    values.update(flags)

    converted: dict[str, Any] = {}
    for each in fields(config_class):
        if each.name in values:
            try:
                value = _convert(values[each.name], each.type)
                _check_range(value, each)
                converted[each.name] = value
            except ValueError as problem:
                mistakes.append(f"--{each.name}: {problem}")
        elif each.default is MISSING and each.default_factory is MISSING:
            mistakes.append(f"--{each.name} is missing: {each.metadata['help']}")
    if not mistakes:
        config = config_class(**converted)
        mistakes = config.mistakes()
        if not mistakes and given.print_config:
            print(yaml.safe_dump(to_plain(config), allow_unicode=True, sort_keys=False), end="")
            sys.exit(0)
    UserError.of_all(mistakes)
    return config


def check_command_line(config_class: type[Config]) -> None:
    """Answer --help and mistakes at once. For scripts to call before imports that take seconds."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C among the imports ends the process, without a word
    try:
        parse(config_class)
    except UserError as mistakes:
        leave_with(mistakes)


def flags_of(config: Config, *names: str) -> str:
    """The named settings as flags for another command, with a leading blank; those that have their default are left out."""
    found = ""
    for each in fields(config):  # type: ignore[arg-type]
        value = getattr(config, each.name)
        if each.name in names and value != each.default:
            found += f" --{each.name} {shlex.quote(str(value))}"
    return found


def to_plain(config: Config) -> dict[str, Any]:
    """A config's fields as values that JSON and YAML know."""
    return {name: _plain(value) for name, value in asdict(config).items()}  # type: ignore[call-overload]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows every flag with the one value, or the values, that it really takes."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return str(action.metavar or "")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _plain_type(annotation: Any) -> Any:
    """The type inside `X | None`, or the annotation itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(each for each in get_args(annotation) if each is not type(None))
    return annotation


def _metavar(each: Field) -> str:
    kind = _plain_type(each.type)
    if get_origin(kind) is list:
        return f"{_metavar_of_one(get_args(kind)[0])} [...]"
    return _metavar_of_one(kind)


def _metavar_of_one(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _help(each: Field) -> str:
    if each.default is not MISSING:
        default = each.default
    elif each.default_factory is not MISSING:
        default = " ".join(str(value) for value in each.default_factory())
    else:
        return f"{each.metadata['help']} (required)"
    shown = str(default).replace("\n", "\\n") if default not in (None, "") else ""
    return f"{each.metadata['help']} (default: {shown})" if shown else each.metadata["help"]


def _unknown_words(words: list[str], config_class: type) -> list[str]:
    mistakes = []
    after_flag = False
    for word in words:
        if word.startswith("-"):
            name = word.split("=")[0]
            mistakes.append(f"{name}: unknown flag{_did_you_mean(name.lstrip('-'), config_class, '--')}")
            after_flag = True
        elif not after_flag:  # the value of an unknown flag is no mistake of its own
            mistakes.append(f"{word}: a value without a flag; see --help")
    return mistakes


def _did_you_mean(name: str, config_class: type, prefix: str = "") -> str:
    names = [each.name for each in fields(config_class)] + ["config", "print_config", "help"]
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else "; see --help"


def _read_yaml(paths: list[str], config_class: type, mistakes: list[str]) -> dict[str, Any]:
    """The settings of a YAML file; what is wrong with the file goes to `mistakes`."""
    if len(paths) != 1:
        mistakes.append("--config: name one YAML file")
        return {}
    try:
        settings = yaml.safe_load(Path(paths[0]).read_text(encoding="utf-8")) or {}
    except OSError as error:
        mistakes.append(f"--config {paths[0]}: can't be read ({error.strerror}); check the path")
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        mistakes.append(f"--config {paths[0]}: not valid YAML ({problem}); --print_config shows the form")
        return {}
    if not isinstance(settings, dict):
        mistakes.append(f"--config {paths[0]}: lines of the form 'name: value' are needed; --print_config shows them")
        return {}
    known = {each.name for each in fields(config_class)}
    for name in [name for name in settings if name not in known]:
        mistakes.append(f"--config {paths[0]}: unknown setting {name}{_did_you_mean(str(name), config_class)}")
        del settings[name]
    return settings


def _convert(value: Any, annotation: Any) -> Any:
    """A value of the command line (strings in a list, or a bool) or of YAML as what the annotation says.

    Raises:
        ValueError: it can't be; the message says what is wrong and what would be right.
    """
    kind = _plain_type(annotation)
    values = value if isinstance(value, list) else [value]
    if kind is not annotation and values in ([None], ["none"]):
        return None
    if get_origin(kind) is list:
        if not values:
            raise ValueError("at least one value is needed")
        return [_convert_one(each, get_args(kind)[0]) for each in values]
    if len(values) != 1:
        raise ValueError(f"one value is needed, not {len(values)}")
    return _convert_one(values[0], kind)


def _convert_one(value: Any, kind: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{value!r} is neither true nor false")
    if isinstance(value, (dict, list, bool)) or value is None:
        raise ValueError(f"{value!r} is not of the right kind; --print_config shows the form")
    text = str(value)
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(f"{text!r} is not one of {', '.join(get_args(kind))}")
        return text
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
    if kind is float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is not a finite number")
        return number
    if kind is Path:
        if not text:
            raise ValueError("the path is empty")
        return Path(text)
    return text


def _check_range(value: Any, each: Field) -> None:
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        limits = each.metadata
        if limits["above"] is not None and not number > limits["above"]:
            raise ValueError(f"{number} is too small; it must be above {limits['above']}")
        if limits["at_least"] is not None and number < limits["at_least"]:
            raise ValueError(f"{number} is too small; it must be at least {limits['at_least']}")
        if limits["at_most"] is not None and number > limits["at_most"]:
            raise ValueError(f"{number} is too large; it must be at most {limits['at_most']}")
