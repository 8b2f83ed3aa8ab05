"""Command lines in the shape of runc's: flags before arguments, `--flag value`, `--flag=value`, `-f value`."""

from __future__ import annotations

from runc.errors import UsageFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Flag:
    """One flag. `value` is the type of what follows it: None for a switch; `many` collects repeated values."""

    __slots__ = ("default", "many", "name", "short", "usage", "value")

    def __init__(
        self,
        name: str,
        usage: str,
        *,
        short: str = "",
        value: type[str] | type[int] | None = None,
        many: bool = False,
        default: str = "",
    ) -> None:
        self.name = name
        self.usage = usage
        self.short = short
        self.value = value
        self.many = many
        self.default = default

    @property
    def spelling(self) -> str:
        """As `--help` shows it: `--bundle value, -b value`."""
        tail = " value" if self.value else ""
        return f"--{self.name}{tail}" + (f", -{self.short}{tail}" if self.short else "")


class Options:
    """The flags that were given, by name."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, list[str]]) -> None:
        self._values = values

    def has(self, name: str) -> bool:
        """Was the flag given (and not as `--flag=false`)?"""
        return name in self._values and self._values[name][-1] not in ("false", "0", "f", "F", "FALSE", "False")

    def text(self, name: str, default: str = "") -> str:
        """The last value given for the flag."""
        return self._values[name][-1] if name in self._values else default

    def texts(self, name: str) -> list[str]:
        """Every value given for the flag, in order."""
        return self._values.get(name, [])

    def number(self, name: str, default: int = 0) -> int:
        """The last value as a number: it was checked when the command line was parsed."""
        return int(self._values[name][-1], 0) if name in self._values else default


def parse(flags: tuple[Flag, ...], argv: list[str], *, interspersed: bool = True) -> tuple[Options, list[str]]:
    """Tell flags from arguments. With `interspersed` flags may follow arguments; `--` ends them.

    Raises UsageFailure in the words of Go's flag package.
    """
    known = {flag.name: flag for flag in flags} | {flag.short: flag for flag in flags if flag.short}
    values: dict[str, list[str]] = {}
    arguments: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        if not word.startswith("-") or word == "-":
            arguments.append(word)
            if not interspersed:
                arguments += rest
                break
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flag = known.get(name)
        if flag is None:
            _fail(f"flag provided but not defined: -{name}")
        if flag.value is None:
            values[flag.name] = [value if equals else "true"]
            continue
        if not equals:
            if not rest:
                _fail(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        if flag.value is int:
            _check_number(name, value)
        values[flag.name] = [*values.get(flag.name, []), value] if flag.many else [value]
    return Options(values), arguments


def _check_number(name: str, value: str) -> None:
    try:
        int(value, 0)
    except ValueError:
        _fail(f'invalid value "{value}" for flag -{name}: parse error')


def _fail(message: str) -> NoReturn:
    raise UsageFailure(message, f"Incorrect Usage: {message}")


def options_help(flags: tuple[Flag, ...]) -> str:
    """The lines of `OPTIONS:`."""
    width = max((len(flag.spelling) for flag in flags), default=0)
    lines = []
    for flag in flags:
        default = f" (default: {flag.default})" if flag.default else ""
        lines.append(f"   {flag.spelling:<{width}}  {flag.usage}{default}")
    return "\n".join(lines)
