"""Who the container's process is: ``--user`` and ``--group-add`` turned into numbers by the container's own files.

The forms are those of the Engine API: ``user``, ``uid``, ``user:group``, ``uid:gid`` and mixtures of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dockerd import errors

__all__ = ["ROOT", "Identity", "resolve"]

_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class Identity:
    """The numbers of ``process.user`` in the runtime specification."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()


ROOT = Identity(0, 0, (0,))


@dataclass(frozen=True)
class _Account:
    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve(user: str, group_add: Sequence[str], passwd: str, group: str) -> Identity:
    """Find ``user`` (empty: root) in the texts of /etc/passwd and /etc/group.

    A number needs no entry. Raises InvalidParameter for a name without one, and for numbers out of range.
    """
    groups = list(_groups(group))
    name, _, group_name = user.partition(":")
    account = _find_account(name or "0", list(_accounts(passwd)))
    if group_name:
        # A group that is named takes the place of the user's own groups.
        gid, supplementary = _find_group(group_name, groups), []
    else:
        gid = account.gid
        supplementary = [entry.gid for entry in groups if account.name and account.name in entry.members]
    additional = [gid, *supplementary, *(_find_group(extra, groups) for extra in group_add)]
    return Identity(account.uid, gid, tuple(dict.fromkeys(additional)))


def _find_account(name: str, accounts: list[_Account]) -> _Account:
    number = _number(name)
    for entry in accounts:
        if entry.name == name or (number is not None and entry.uid == number):
            return entry
    if number is None:
        raise errors.InvalidParameter(f"unable to find user {name}: no matching entries in passwd file")
    return _Account("", _in_range("uid", number), 0)


def _find_group(name: str, groups: list[_Group]) -> int:
    number = _number(name)
    for entry in groups:
        if entry.name == name:
            return entry.gid
    if number is None:
        raise errors.InvalidParameter(f"unable to find group {name}: no matching entries in group file")
    return _in_range("gid", number)


def _in_range(kind: str, number: int) -> int:
    if number > _LIMIT:
        raise errors.InvalidParameter(f"{kind}s and gids must be in range 0-{_LIMIT}")
    return number


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() else None


def _fields(text: str, count: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        fields = line.split(":")
        if not line.startswith("#") and len(fields) >= count:
            yield fields


def _accounts(passwd: str) -> Iterator[_Account]:
    for name, _, uid, gid, *_rest in _fields(passwd, 4):
        numbers = _number(uid), _number(gid)
        if numbers[0] is not None and numbers[1] is not None:
            yield _Account(name, numbers[0], numbers[1])


def _groups(group: str) -> Iterator[_Group]:
    for name, _, gid, *rest in _fields(group, 3):
        number = _number(gid)
        if number is not None:
            members = rest[0] if rest else ""
            yield _Group(name, number, tuple(member.strip() for member in members.split(",")))
