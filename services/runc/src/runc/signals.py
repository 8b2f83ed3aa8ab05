"""Signal names and numbers, without the `signal` module and the `enum` that it brings."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]

from runc.errors import RuntimeFailure

NUMBERS: dict[str, int] = {
    name[3:]: getattr(_signal, name)
    for name in dir(_signal)
    if name.startswith("SIG") and not name.startswith(("SIG_", "SIGRT")) and isinstance(getattr(_signal, name), int)
}
_REALTIME_MIN, _REALTIME_MAX = 34, 64
MAX = 64


def parse(text: str) -> int:
    """The number of a signal given as `9`, `KILL`, `SIGKILL`, `RTMIN+3`. Raises RuntimeFailure."""
    if text.isascii() and text.isdigit():
        number = int(text)
        if number <= MAX:
            return number
    name = text.upper().removeprefix("SIG")
    if name in NUMBERS:
        return NUMBERS[name]
    for base, start, sign in (("RTMIN", _REALTIME_MIN, 1), ("RTMAX", _REALTIME_MAX, -1)):
        rest = name.removeprefix(base)
        if rest != name and (rest == "" or (rest[1:].isdigit() and rest[0] == "+-"[sign < 0])):
            number = start + sign * int(rest[1:] or 0)
            if _REALTIME_MIN <= number <= _REALTIME_MAX:
                return number
    raise RuntimeFailure(f'unknown signal "{text}"')
