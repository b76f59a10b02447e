"""Parsers whose complaints are ConfigErrors, and how a subcommand is added to them."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from foreword.errors import ConfigError, nearest


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ConfigErrors, like those of a configuration file."""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "command" if action.dest == "command" else f"--{action.dest}"
            raise ConfigError(f"{name} {value!r} is unknown{nearest(value, map(str, action.choices))}")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        """Return the parsed arguments.

        Raises:
            ConfigError: an option is unknown; names the nearest, or how to write a dotted field.
        """
        found, left = self.parse_known_args(*args, **kwargs)
        rest = getattr(found, "rest", None)
        if rest is not None:  # argparse takes positional words before the first option only
            getattr(found, rest).extend(word for word in left if not word.startswith("-"))
        unknown = [word for word in left if rest is None or word.startswith("-")]
        if unknown:
            word = unknown[0].partition("=")[0]
            field = word.lstrip("-")
            if word.startswith("--") and "." in field:
                raise ConfigError(f"option {word!r} is unknown; fields of the configuration are set as {field}=VALUE")
            raise ConfigError(f"option {word!r} is unknown{nearest(word, found.options)}")
        return found


def refuse_beside(option: str, given: dict[str, Any]) -> None:
    """Raise where options are given that have no effect beside another.

    Args:
        option: the other.
        given: name to value; None, False and [] are not given.

    Raises:
        ConfigError: names the first.
    """
    for name, value in given.items():
        if value not in (None, False, []):
            raise ConfigError(f"{name} has no effect beside {option}; leave one of them out")


def add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Callable[..., Any]:
    """Add a subcommand and return its `add_argument`."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run, options=[], rest=None)

    def add(*names: str, **settings: Any) -> None:
        command.add_argument(*names, **settings)
        if settings.get("nargs") == "*":
            command.set_defaults(rest=names[0])
        command.set_defaults(options=[*command.get_default("options"), *(n for n in names if n.startswith("--"))])

    return add
