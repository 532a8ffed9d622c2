"""The flag `--config` of the programs that take one, and the refusal of their flags in one line."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

from absl import flags
from ml_collections import config_flags

from currreft_jax.config.checks import describe
from currreft_jax.config.data import Kind, Source, Task
from currreft_jax.config.evaluation import EvaluatedModel, ImageCondition, Suite
from currreft_jax.config.file_flags import define_files, expand_files, gather_files
from currreft_jax.config.files import load_config
from currreft_jax.config.help import help_text
from currreft_jax.config.names import nearest, nearest_settings, setting_type
from currreft_jax.config.own_rows import use_rows
from currreft_jax.config.rejection import QuotaSource
from currreft_jax.config.stage import Stage
from currreft_jax.config.training import ELSEWHERE, Config
from currreft_jax.config.validation import validate

Settings = TypeVar("Settings")

REFUSED = 2  # exit code of a program that refuses its command line, as argparse has it
_NO_CONFIG = "--config is missing; configs/ has some, such as --config=configs/curriculum.py"
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")
_STAGE_FILES = re.compile(r"(stages\[(-?\d+)\])\.sources(\[-?\d+\]\.file)?")
_HELP = ("--help", "-help", "-h", "-?", "--helpshort")
ROWS, HELD_OUT = "rows", "held-out"
_WRONG_VALUE = re.compile(r"flag --(config\.([^=]+)=.*?): ", re.S)
_command_line: list[str] = []  # ml_collections finds the overrides here


def define_config(default: Settings | None = None) -> flags.FlagHolder[Settings]:
    """Defines `--config=FILE:VARIANT`, and with it a flag for every setting, `--config.NAME=VALUE`.

    A training config also gets `--rows` and `--held-out`.

    Args:
        default: the settings of an empty `--config=`; without any, a training `Config` whose file must be named.
    """
    settings: Any = Config() if default is None else default

    description = "FILE or FILE:VARIANT; the file has get_config(variant)"
    holder = config_flags.DEFINE_config_dataclass(
        "config", settings, description, sys_argv=_command_line, parse_fn=partial(_load_config, default, type(settings))
    )
    flags.FLAGS["config"].default_as_str = ""
    if default is None:
        define_files(
            ROWS,
            "files or patterns such as train/*.jsonl: rows that every stage trains on, those of its kinds, each file"
            " with the same share of the batches; instead of the config's, whose held-out rows go with them",
        )
        define_files(HELD_OUT, "files or patterns of rows that are never trained on, to measure every stage with")
    return holder


def flags_parser(
    program: str, *, example: Any = None, validate: Callable[[Any], None] = validate
) -> Callable[[Sequence[str]], list[str]]:
    """Returns a flags parser for `app.run`, which also validates the config.

    It ends the program with one line and code 2 for a flag or a setting that is misspelt or has an impossible value.

    Args:
        program: the program's name, which starts the line.
        example: settings among which the nearest to a misspelt flag are sought, for a program that has defaults for all
            of them, and so needs no `--config`; without it, one must be named.
        validate: raises a ValueError for impossible settings.
    """
    names = Config(stages=[Stage()]) if example is None else example

    def parse(arguments: Sequence[str]) -> list[str]:
        if any(argument in _HELP for argument in arguments):
            _print_help(program, arguments, names)
        if example is not None and not any(re.match("--?config($|=)", argument) for argument in arguments):
            arguments = [*arguments[:1], "--config=", *arguments[1:]]
        try:
            arguments = gather_files(arguments)
            _command_line[:] = arguments
            positional = flags.FLAGS(arguments)
            if len(positional) > 1:
                raise ValueError(f"{positional[1]} is no flag; a setting is written --config.NAME=VALUE")
            if not flags.FLAGS["config"].present:
                raise ValueError(_NO_CONFIG)
            validate(flags.FLAGS.config)
        except (flags.Error, ValueError) as error:
            refuse_command_line(program, _describe_error(error, names))
        return positional

    return parse


def refuse_replaced(replaced: Mapping[str, str]) -> None:
    """Refuses settings of the command line that another flag beside them replaces.

    Args:
        replaced: flag of a program -> the setting that it replaces, such as rows -> suites.

    Raises:
        ValueError: naming both.
    """
    arguments = flags.FLAGS.read_flags_from_files(_command_line, force_gnu=False)
    for argument in arguments:
        override = _OVERRIDE.match(argument)
        for flag, setting in replaced.items():
            if override and re.match(rf"{re.escape(setting)}($|[.\[])", override[1]) and flags.FLAGS[flag].present:
                raise ValueError(f"{argument}: --{flag} replaces config.{setting}; give one of them")


def refuse_command_line(program: str, message: str) -> NoReturn:
    """Ends a program with one line and code 2."""
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(REFUSED)


def _print_help(program: str, arguments: Sequence[str], example: Any) -> NoReturn:
    """Prints the flags and the settings of a program, those of the config that is named, and ends it."""
    texts = re.findall(r"^--?config(?:=|\n)(.*)$", "\n".join(arguments), re.M)
    text = texts[-1] if texts else ""
    if ":" in text:
        os.environ.setdefault(ELSEWHERE, "1")  # a variant for other machines can be read about
    try:
        config = load_config(text, type(example)) if text else example
    except ValueError as error:
        refuse_command_line(program, f"--config={text}: {error}")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
    print(help_text(config, text), flush=True)
    sys.exit(0)


def _load_config(default: Any, kind: type, text: str) -> Any:
    """Loads a config with the files of `--rows` and `--held-out`; refuses overrides of settings that it does not have.

    Args:
        default: the settings of an empty text; None refuses it.
        kind: class of the settings.
        text: FILE or FILE:VARIANT.

    Raises:
        flags.Error: naming the flag; a ValueError would be reworded on its way.
    """
    arguments = flags.FLAGS.read_flags_from_files(_command_line, force_gnu=False)
    try:
        config: Any = load_config(text, kind) if text or default is None else default
    except ValueError as error:
        raise flags.Error(f"--config={text}: {error}") from error
    overrides = {argument: match[1] for argument in arguments if (match := _OVERRIDE.match(argument))}
    files = {name: _files_of(name, arguments) for name in (ROWS, HELD_OUT)}
    if isinstance(config, Config) and any(files.values()):
        try:
            config = use_rows(config, files[ROWS], files[HELD_OUT])
        except ValueError as error:
            raise flags.Error(str(error)) from error
    for argument, path in overrides.items():
        try:
            setting_type(config, path)
        except ValueError as error:
            raise flags.Error(f"{argument}: {error}") from error
    if isinstance(config, Config) and not any(files.values()):
        _refuse_foreign_held_out(config, text, overrides)
    return config


def _files_of(name: str, arguments: Sequence[str]) -> list[str]:
    """Returns the files of a flag of files, from all of its occurrences.

    Raises:
        flags.Error: no file matches.
    """
    prefix = f"--{name}="
    texts = [argument.removeprefix(prefix) for argument in arguments if argument.startswith(prefix)]
    try:
        return expand_files(texts)
    except ValueError as error:
        raise flags.Error(f"--{name}: {error}") from error


def _refuse_foreign_held_out(config: Config, text: str, overrides: Mapping[str, str]) -> None:
    """Refuses to train a stage on files of one's own and to measure it on held-out rows of the config.

    Args:
        config: as its file makes it.
        text: FILE:VARIANT.
        overrides: settings on the command line, each with its path.

    Raises:
        flags.Error: naming the flag and the remedy.
    """
    for argument, path in overrides.items():
        stage = _STAGE_FILES.fullmatch(path)
        if stage and config.stages[int(stage[2])].held_out and f"{stage[1]}.held_out" not in overrides.values():
            raise flags.Error(
                f"{argument}: the held-out rows would be those of {text}, of another set: add --held-out FILES, or"
                f" --config.{stage[1]}.held_out=[] for none"
            )


def _describe_error(error: Exception, example: Any) -> str:
    """Describes a refused command line in one line; `example` has the settings to name."""
    if isinstance(error, flags.UnrecognizedFlagError):
        name = error.flagname
        if name.startswith("config."):
            return _NO_CONFIG
        names = [*nearest(name, flags.FLAGS), *nearest_settings(name, example)]
        hint = f"nearest: {', '.join(f'--{near}' for near in names[:3])}" if names else "--help lists them"
        return f"there is no flag --{name}; {hint}"
    wrong_value = _WRONG_VALUE.match(str(error))
    if isinstance(error, flags.IllegalFlagValueError) and wrong_value:
        argument, path = wrong_value.groups()
        return f"--{argument}: it takes {describe(setting_type(flags.FLAGS.config, path))}"
    return " ".join(str(error).removeprefix("flag ").split())


class _ItemsParser(flags.ArgumentParser):
    """Parses values with commas between them, with or without brackets around them.

    Args:
        collect: makes the setting of the values' texts.
    """

    def __init__(self, collect: Callable[[list[str]], Any]) -> None:
        self._collect = collect

    def parse(self, argument: Any) -> Any:
        """Returns the setting; a default is one already."""
        if not isinstance(argument, str):
            return argument
        text = argument.strip()
        if text[:1] + text[-1:] in ("[]", "()"):
            text = text[1:-1]
        return self._collect([item.strip(" \"'") for item in text.split(",") if item.strip()])

    def flag_type(self) -> str:
        """Names the type in `--helpfull`."""
        return "comma-separated values"


def _pairs(items: list[str]) -> dict[str, str]:
    """Splits NAME=VALUE. A name may hold an equals sign, a value may not."""
    pairs = [item.rpartition("=") for item in items]
    if not all(name and equals for name, equals, _ in pairs):
        raise ValueError("write NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _no_flag(_: list[str]) -> NoReturn:
    raise ValueError("only a config file can write it")


for _type, _collect in (
    (list[Stage], _no_flag),
    (list[Source], lambda items: [Source(file) for file in items]),
    (dict[str, float], lambda items: {name: float(value) for name, value in _pairs(items).items()}),
    (dict[str, str], _pairs),
    (tuple[Kind, ...], lambda items: tuple(Kind(name.lower()) for name in items)),
    (tuple[Task, ...], lambda items: tuple(Task(name.lower()) for name in items)),
    (tuple[ImageCondition, ...], lambda items: tuple(ImageCondition(name.lower()) for name in items)),
    (list[EvaluatedModel], lambda items: [EvaluatedModel(path) for path in items]),
    (list[Suite], lambda items: [Suite(sources=[Source(file)]) for file in items]),
    (list[QuotaSource], lambda items: [QuotaSource(source=Source(file)) for file in items]),
):
    config_flags.register_flag_parser_for_type(_type, _ItemsParser(_collect))
