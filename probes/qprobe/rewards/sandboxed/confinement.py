"""Gives up, for good, what code in the sandbox must not do. Unprivileged kernel means only.

- Landlock (Linux 5.13): reading Python's standard library, and no other access to files.
- seccomp: a short list of system calls is allowed, all others fail. Not on it: processes and
  threads, sockets, signals to anyone, limits, ``prctl``, ``ptrace``, anything that writes a file or
  asks for its status by name.
- rlimits: CPU time, address space, file size, open files. They bind root too.

No user namespace and no capability is needed, so it works for root and in containers. What it does
not hide: the clock and the kernel's version.
"""

import ctypes
import importlib
import os
import resource

from .library import readable

__all__ = ["Refusal", "confine"]

# (x86_64, aarch64) numbers of the calls that Python and libc make; None: not on that machine.
# fork, clone and clone3 are not here: RLIMIT_NPROC does not bind root, and a thread is a process to
# the kernel, so that a bomb of threads could take all process ids.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "close": (3, 57), "lseek": (8, 62), "fstat": (5, 80),
    "getdents64": (217, 61), "getcwd": (79, 17), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "close_range": (436, 436),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "sigaltstack": (131, 132), "futex": (202, 98),
    "set_robust_list": (273, 99), "rseq": (334, 293), "membarrier": (324, 283),
    "restart_syscall": (219, 128), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getrusage": (98, 165), "getrandom": (318, 278), "uname": (63, 160),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_OPENAT, _FCNTL, _MADVISE = (257, 56), (72, 25), (28, 233)
# Opening to read only: O_RDONLY | O_TRUNC would empty a file that Landlock lets be read.
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC. Not F_SETOWN, which sends signals.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
# NORMAL to DONTNEED, FREE, HUGEPAGE, NOHUGEPAGE. Not HWPOISON, by which root breaks real memory.
_ADVICE = (0, 1, 2, 3, 4, 8, 14, 15)

# include/uapi/linux: bpf_common.h, seccomp.h, audit.h
_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_OFFSET_NUMBER, _OFFSET_MACHINE, _OFFSET_ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_EPERM = 1

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_SIGKILL = 9

# include/uapi/linux/landlock.h; the numbers of the calls are the same everywhere
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
# (least ABI, kinds of access that it knows, all of them forbidden): 5.13; moving files, 5.19;
# truncating, 6.2; ioctl of devices, 6.10. The later ones are a second lock beside seccomp's.
_KINDS_OF_ACCESS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_PATH_BENEATH = 1


# A module of a few lines that nothing here needs.
_SELDOM_IMPORTED = "nturl2path"


class Refusal(Exception):  # noqa: N818 not an error of the program that was to be run
    """The kernel lacks or forbids a part of the confinement; nothing may be run."""


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("if_true", ctypes.c_uint8),
        ("if_false", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    )


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filters", ctypes.POINTER(_Filter)))


class _RulesetAttributes(ctypes.Structure):
    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


_Instruction = tuple[int, int, int, int]


def confine(*, cpu_s: int, memory_bytes: int) -> None:
    """Confine this process for good. It must have a single thread.

    Args:
        cpu_s: CPU time from the process's start until it is killed, >= 1.
        memory_bytes: Limit of its address space.

    Raises:
        Refusal: A part could not be had; the process must not run anything then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(libc, "no_new_privs", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(libc, "a signal at the parent's death", _PR_SET_PDEATHSIG, _SIGKILL)
    _restrict_files(libc)
    for what, limit in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(what, (limit, limit))
    _restrict_calls(libc)
    _prove()


def _restrict_files(libc: ctypes.CDLL) -> None:
    abi = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    kinds = sum(kinds for least, kinds in _KINDS_OF_ACCESS if abi >= least)
    attributes = _RulesetAttributes(kinds or _KINDS_OF_ACCESS[0][1])
    size = ctypes.sizeof(attributes)
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise Refusal(f"Landlock (Linux 5.13 or later) is not there: {_reason()}")
    for path, access in _readable():
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # not every system has every folder
            continue
        rule = _PathBeneath(access, descriptor)
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0) < 0:
            raise Refusal(f"Landlock refuses a rule for {path!r}: {_reason()}")
        os.close(descriptor)
    if libc.syscall(_RESTRICT_SELF, ruleset, 0) < 0:
        raise Refusal(f"Landlock cannot be switched on: {_reason()}")
    os.close(ruleset)


def _readable() -> list[tuple[str, int]]:
    return [(path, _READ_FILE) for path in readable()]


def _restrict_calls(libc: ctypes.CDLL) -> None:
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise Refusal(f"no list of system calls for a machine of kind {machine!r}")
    instructions = _program(*_MACHINES[machine])
    filters = (_Filter * len(instructions))(*(_Filter(*each) for each in instructions))
    program = _FilterProgram(len(instructions), filters)
    _prctl(libc, "seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))


def _program(column: int, machine: int) -> list[_Instruction]:
    program = [
        (_LOAD, 0, 0, _OFFSET_MACHINE),
        (_IF_EQUAL, 1, 0, machine),  # calls by another numbering, such as 32-bit ones
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
    ]
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            program += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    # The kernel reads these arguments as 32 bits: the lower half is all there is.
    no_writing = [
        (_LOAD, 0, 0, _OFFSET_ARGUMENTS + 2 * 8),
        (_IF_ANY_BIT, 1, 0, _WRITING),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL | _EPERM),
    ]
    for number, body in (
        (_OPENAT[column], no_writing),
        (_FCNTL[column], _one_of(1, _FCNTL_COMMANDS)),
        (_MADVISE[column], _one_of(2, _ADVICE)),
    ):
        program += [(_IF_EQUAL, 0, len(body), number), *body]
    return [*program, (_RETURN, 0, 0, _FAIL | _EPERM)]


def _one_of(argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    body = [(_LOAD, 0, 0, _OFFSET_ARGUMENTS + argument * 8)]
    for value in values:
        body += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return [*body, (_RETURN, 0, 0, _FAIL | _EPERM)]


def _prove() -> None:
    """Try what must fail, lest a kernel accepts what it does not enforce, and what must work."""
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        pass
    else:
        raise Refusal("Landlock is on but does not keep files from being read")
    try:
        os.kill(os.getpid(), 0)
    except PermissionError:
        pass
    else:
        raise Refusal("seccomp is on but does not stop system calls")
    try:
        importlib.import_module(_SELDOM_IMPORTED)
    except ImportError as error:
        raise Refusal(f"Python cannot import its own library any more: {error}") from error


def _prctl(libc: ctypes.CDLL, what: str, option: int, value: int, pointer: object = None) -> None:
    third = pointer if pointer is not None else ctypes.c_ulong(0)
    zero = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), third, zero, zero) < 0:
        raise Refusal(f"the kernel refuses {what}: {_reason()}")


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
