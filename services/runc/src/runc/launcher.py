"""The launcher: a program of two hundred bytes that starts the container's program, and is all that it can see of us.

A configuration can name `/proc/self/exe` as its program, directly or as the interpreter of a script: execve(2) then
starts once more whatever the calling process runs, inside the container, from where its file could be opened for
writing (CVE-2019-5736). An init whose interpreter is not on a read-only mount therefore executes the launcher from a
sealed memory file, and the launcher the container's program: `/proc/self/exe` is then the launcher, which nobody can
write to. This spares a cold `create` or `run` the second start of the interpreter that `protection` does otherwise.

Its arguments: the path to execute; what to say when that fails; the program's own arguments. What to say is a list of
records, each one byte of errno (0xff: any), a text, a newline.
"""

from __future__ import annotations

import errno
import os

from gantry.linux.libc import MACHINE
from gantry.linux.process import fexecve
from runc.errors import system_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_MFD_EXEC = 0x0010
_F_ADD_SEALS = 1033
_ALL_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008  # SEAL, SHRINK, GROW, WRITE
ANY_ERROR = 0xFF

# x86-64, System V ABI: at the start rsp points to argc, argv, NULL, envp, NULL.
X86_64: tuple[tuple[str, str], ...] = (
    ("488b0c24", "mov rcx, [rsp]"),
    ("488b7c2408", "mov rdi, [rsp + 8]"),
    ("488d742418", "lea rsi, [rsp + 24]"),
    ("488d54cc10", "lea rdx, [rsp + rcx*8 + 16]"),
    ("b83b000000", "mov eax, 59"),  # execve(argv[0], &argv[2], envp)
    ("0f05", "syscall"),
    ("f7d8", "neg eax"),
    ("89c3", "mov ebx, eax"),
    ("488b742410", "mov rsi, [rsp + 16]"),
    ("8a06", "next: mov al, [rsi]"),
    ("48ffc6", "inc rsi"),
    ("4889f2", "mov rdx, rsi"),
    ("8a0a", "scan: mov cl, [rdx]"),
    ("48ffc2", "inc rdx"),
    ("80f90a", "cmp cl, 10"),
    ("75f6", "jne scan"),
    ("38d8", "cmp al, bl"),
    ("7409", "je print"),
    ("3cff", "cmp al, 255"),
    ("7405", "je print"),
    ("4889d6", "mov rsi, rdx"),
    ("ebe1", "jmp next"),
    ("4829f2", "print: sub rdx, rsi"),
    ("bf02000000", "mov edi, 2"),
    ("b801000000", "mov eax, 1"),  # write(2, text, length)
    ("0f05", "syscall"),
    ("bf01000000", "mov edi, 1"),
    ("b8e7000000", "mov eax, 231"),  # exit_group(1)
    ("0f05", "syscall"),
)

_LOAD_ADDRESS = 0x400000
_EHDR, _PHDR = 64, 56


def image() -> bytes:
    """The ELF file: its header, one segment to load, the code (elf(5))."""
    code = bytes.fromhex("".join(raw for raw, _ in X86_64))
    size = _EHDR + _PHDR + len(code)

    def number(value: int, width: int) -> bytes:
        return value.to_bytes(width, "little")

    header = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bit, little-endian, version 1
    header += number(2, 2) + number(62, 2) + number(1, 4)  # ET_EXEC, EM_X86_64
    header += number(_LOAD_ADDRESS + _EHDR + _PHDR, 8) + number(_EHDR, 8) + number(0, 8)  # entry, segments, sections
    header += number(0, 4) + number(_EHDR, 2) + number(_PHDR, 2) + number(1, 2) + bytes(6)
    segment = number(1, 4) + number(5, 4) + number(0, 8)  # PT_LOAD, readable and executable, from the file's start
    segment += number(_LOAD_ADDRESS, 8) * 2 + number(size, 8) * 2 + number(0x1000, 8)
    return header + segment + code


def create() -> int:
    """A sealed memory file with the launcher, to be executed; -1 where there is none for this machine or kernel."""
    if MACHINE != "x86_64":
        return -1
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            fd = os.memfd_create("runc-launcher", flags | _MFD_EXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel before 6.3 does not know the flag, nor forbids executing
                return -1
            fd = os.memfd_create("runc-launcher", flags)
    except OSError:
        return -1
    import fcntl

    os.write(fd, image())
    fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    return fd


_EXPECTED = (
    errno.EPERM,
    errno.ENOENT,
    errno.EIO,
    errno.E2BIG,
    errno.ENOEXEC,
    errno.ENOMEM,
    errno.EACCES,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.EMFILE,
    errno.ETXTBSY,
    errno.ELOOP,
    errno.ELIBBAD,
)


def messages(path: str) -> bytes:
    """What the launcher says when the kernel does not start the program."""
    name = os.fsencode(path).replace(b"\n", b"?")
    records = [
        bytes((number,)) + b"exec " + name + b": " + system_text(OSError(number, "")).encode() + b"\n"
        for number in _EXPECTED
    ]
    return b"".join(records) + bytes((ANY_ERROR,)) + b"exec " + name + b": can not be executed\n"


def execute(fd: int, path: str, args: list[str], env: dict[str, str]) -> NoReturn:
    """Execute the launcher of `fd`, and with it the program. Raises OSError when the launcher can not be started."""
    fexecve(fd, [path, messages(path), *args], env)
    raise AssertionError("unreachable")
