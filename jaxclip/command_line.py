"""The flag --config=configs/NAME.py, and one line on whatever is wrong with what it names."""

from __future__ import annotations

import pathlib
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxclip.errors import UserError
from jaxclip.io import one_line

# A key that the recipe does not have is accepted here, so that `parsing.parse` names it and the nearest valid one.
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A recipe, such as configs/vit_b16.py.", lock_config=False, accept_new_attributes=True
)


def read(argv: list[str]) -> Any:
    """Parses a command line's flags, which other modules may have defined more of.

    Returns:
      The recipe's ConfigDict, with the keys of the command line set.

    Raises:
      UserError: a flag or the recipe is wrong.
      SystemExit: after help was asked for and printed.
    """
    if asked := {"-h", "-help", "--help"}.intersection(argv):
        argv = [argument for argument in argv if argument not in asked]
        _help(_read(argv) if _given_recipe(argv) else None)
        raise SystemExit(0)
    return _read(argv)


def _help(recipe: Any) -> None:
    """Prints the flags, and every key of the recipe or, without one, those that all have."""
    from jaxclip import keys, methods
    from jaxclip.config import Config

    print(sys.modules["__main__"].__doc__ or "")
    for name, flag in flags.FLAGS.flags_by_module_dict().items():
        if name.startswith("jaxclip") or name == sys.argv[0]:
            for each in flag:
                print(f"--{each.name}: {each.help}")
    if recipe is None:
        print("\nKeys of all recipes; --config=RECIPE --help lists those of a recipe, with its values:")
        print("\n".join(keys.listing(Config, None, "config")))
        return
    print("\nKeys of the recipe with its values:")
    values = recipe.to_dict()
    print("\n".join(keys.listing(Config, values, "config", without="method")))
    method = methods.from_config(values["method"])
    print("\n".join(keys.listing(type(method), method, "config.method")))


def _read(argv: list[str]) -> Any:
    try:
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"{rest[1]!r} is not a flag; keys are given as --config.KEY=VALUE")
        if _CONFIG.value is None:
            raise UserError("give a recipe: --config=configs/quickstart.py")
        # A recipe that could not be loaded says so only when it is looked into.
        _CONFIG.value.keys()
        return _CONFIG.value
    except UserError:
        raise
    except Exception as error:  # A recipe is a program, in which anything can go wrong.
        raise UserError(_explain(error, argv)) from None


def _explain(error: Exception, argv: list[str]) -> str:
    """One line on what is wrong on the command line, or at which line of the recipe."""
    recipe = _given_recipe(argv)
    path = pathlib.Path(recipe.partition(":")[0])  # What follows a colon is get_config's argument.
    if isinstance(error, OSError) and not path.is_file():
        return f"--config={recipe}: there is no file {path}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SyntaxError):
            # Values of the command line have no file.
            if cause.filename != "<unknown>":
                return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
            return f"{_with_value(argv, cause.text)}: {cause.msg}; write it as in Python, such as {{}} or (1, 2)"
        frames = traceback.extract_tb(cause.__traceback__)
        lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).absolute() == path.absolute()]
        if lines:
            return f"{path}, line {lines[-1]}: {type(cause).__name__}: {one_line(cause)}"
        cause = cause.__context__
    if isinstance(error, KeyError):
        # ml_collections puts quotes around the key.
        key = str(error.args[0]).strip("'")
        for argument in argv:
            keys = argument.partition("=")[0].removeprefix("--").split(".")
            if key in keys[1:-1]:
                missing = ".".join(keys[: keys.index(key, 1) + 1])
                return f"{'.'.join(keys)}: the recipe has no {missing}; add it in {recipe}"
    # The parser's own words follow in ml_collections' message.
    wrong = one_line(error).partition(": ValueError(")[0]
    return wrong if isinstance(error, flags.Error) else f"--config={recipe}: {wrong}"


def _with_value(argv: list[str], value: str | None) -> str:
    """The flag that was given a value."""
    flags_given = (argument for argument in argv if argument.startswith("--config."))
    return next(
        (each for each in flags_given if each.partition("=")[2] == (value or "").rstrip("\n")), "the command line"
    )


def _given_recipe(argv: list[str]) -> str:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""
