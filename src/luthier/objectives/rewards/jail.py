"""The process in which an answer's code runs: started by `code.py` as a script of its own, with the standard library alone.

    python -I -S jail.py < task > reply

The task comes in Python's own form for its constants (`marshal`), the reply is `1` or `0` for each test, or a sentence: only to import
what reads JSON would take longer than most tests do.

This process stays outside: for each test it forks a child, which locks itself in and then runs the code and the test. What locks it in:

- limits of the system: processor time, address space, size of files, open files, no core dumps, and death with its parent;
- no privileges: every capability is given up, and none can be gained;
- Landlock: it writes in its own empty folder only, reads Python, the system's libraries and that folder only, and executes nothing;
- seccomp: no sockets, no processes (threads are allowed), no signals to others, no changed rights or owners of files, no IPC.

Landlock and seccomp need no rights and work inside containers, on Linux 5.13 or newer, x86-64 or ARM. Without them (`isolate` false)
the limits are all there is, and no new processes unless one is root.

That a Python test passed is told by a token over a pipe, because an exit status of 0 is easily had (`os._exit(0)`). The output of a
program is compared outside.
"""

from __future__ import annotations

import builtins
import ctypes
import marshal
import os
import resource
import select
import signal
import stat
import struct
import sys
import time

TYPE_CHECKING = False  # importing `typing` takes longer than most tests do
if TYPE_CHECKING:
    from typing import Any

FILE_SIZE = 16 << 20
"""Bytes of the largest file that an answer may write, its output included."""
OPEN_FILES = 64
_LOCKED = b"+"
"""What a child says first, when it is locked in and the answer has not begun."""
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {
    # Name: number on x86-64, on ARM (the second column is that of all newer architectures); None where there is no such call.
    "fork": (57, None), "vfork": (58, None), "setsid": (112, 157), "setpgid": (109, 154), "unshare": (272, 97), "setns": (308, 268),
    "socket": (41, 198), "io_uring_setup": (425, 425), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "migrate_pages": (256, 238), "move_pages": (279, 239), "setpriority": (141, 140),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "setrlimit": (160, 164), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "truncate": (76, 45),
}  # fmt: skip
"""System calls that an answer has no business with."""
_MACHINES = {"x86_64": (0xC000003E, 0, 56, 302), "aarch64": (0xC00000B7, 1, 220, 261)}
"""For each architecture its audit number, its column above, and its `clone` and `prlimit64`."""
_GUARDED = (
    # Numbers as above; an argument, by its index; a mask; what it must not be.
    ((72, 25), 1, 0xFFFFFFFF, (8, 10, 15)),  # fcntl F_SETOWN, F_SETSIG, F_SETOWN_EX: they send signals to others
    ((16, 29), 1, 0xFFFFFFFF, (0x5412, 0x8901, 0x8902)),  # ioctl TIOCSTI, FIOSETOWN, SIOCSPGRP: the like
    ((2, None), 1, 0o1003, (0o1000,)),  # open and openat: to read and truncate, which Landlock refuses from Linux 6.2 on
    ((257, 56), 2, 0o1003, (0o1000,)),
)
"""System calls that an answer may make, but not with these arguments."""
_CLONE3, _OPENAT2, _CLONE_THREAD = 435, 437, 0x10000


class CannotIsolate(Exception):
    """The system lacks what locks code in."""


def main() -> None:
    """Read the task, run each test in a child, reply which have passed."""
    task = marshal.load(sys.stdin.buffer)
    deadline = time.monotonic() + task["seconds"]
    try:
        print("".join(str(int(_test(task, test, number, deadline))) for number, test in enumerate(task["tests"])))
    except CannotIsolate as error:
        print(error)


def _test(task: dict[str, Any], test: str | dict[str, str], number: int, deadline: float) -> bool:
    """Whether one test passes; the child is dead when this returns."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    token = os.urandom(16)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _inside(task, test, number, writing, token, left)
    os.close(writing)
    said = b""
    while len(said) < 4096 and select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reading, 4096)
        if not part:
            break
        said += part
    ended = _end(child, deadline if isinstance(test, dict) else 0.0)
    os.close(reading)
    if said and not said.startswith(_LOCKED):
        raise CannotIsolate(said.decode("utf-8", "replace"))
    if isinstance(test, dict):
        return ended == 0 and _same_lines(_output(number), test["output"])
    return said == _LOCKED + token


def _inside(task: dict[str, Any], test: str | dict[str, str], number: int, writing: int, token: bytes, left: float) -> None:
    """The child: lock in, run the code and the test, tell, end. Never returns."""
    status = 1
    try:
        output = os.open(f"output-{number}" if isinstance(test, dict) else os.devnull, os.O_WRONLY | os.O_CREAT, 0o600)
        given = os.open(f"input-{number}" if isinstance(test, dict) else os.devnull, os.O_RDWR | os.O_CREAT, 0o600)
        if isinstance(test, dict):
            os.write(given, test["input"].encode())
            os.lseek(given, 0, os.SEEK_SET)
        for source, target in ((given, 0), (output, 1)):
            os.dup2(source, target)
        try:
            _lock_in(task["memory"], left, task["isolate"])
        except (OSError, CannotIsolate) as error:
            os.write(writing, str(error).encode()[:1000])
            os._exit(1)
        os.write(writing, _LOCKED)  # before the answer can write anything
        code = task["code"]
        task["tests"].clear()  # an answer should not come upon the results that are expected of it
        task.clear()
        if isinstance(test, dict):
            test.clear()
        for name in ("exit", "quit"):  # which Python has only with its packages
            setattr(builtins, name, sys.exit)
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(code, "answer.py", "exec"), space)
        if isinstance(test, str):
            exec(compile(test, "test.py", "exec"), space)
            os.write(writing, token)
        sys.stdout.flush()
        status = 0
    except SystemExit as error:  # a program may end itself; of a test this is no success, for there is no token
        sys.stdout.flush()
        status = 0 if error.code in (None, 0) else 1
    except BaseException:
        status = 1
    finally:
        os._exit(status)


def _end(child: int, deadline: float) -> int:
    """Wait for the child until the deadline, then kill it. Its exit status, or 1."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _output(number: int) -> str:
    """What a program has printed. Its own name for the file may have become anything, so only a plain file is read."""
    try:
        reading = os.open(f"output-{number}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(reading, "rb") as file:
        plain = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        return file.read(FILE_SIZE).decode("utf-8", "replace") if plain else ""


def _same_lines(one: str, other: str) -> bool:
    """Whether two outputs are the same but for space at the ends of lines and empty lines at the end."""
    return [line.rstrip() for line in one.rstrip().splitlines()] == [line.rstrip() for line in other.rstrip().splitlines()]


def _lock_in(memory: int, seconds: float, isolate: bool) -> None:
    _checked(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if isolate:
        _landlock()
    time_limit = int(seconds) + 2
    for limit, value in (
        (resource.RLIMIT_CPU, time_limit),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        *([] if isolate else [(resource.RLIMIT_NPROC, 1)]),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    if isolate:
        _no_capabilities()
        _seccomp()


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise CannotIsolate(f"{call}: {os.strerror(number)}")
    return result


def _no_capabilities() -> None:
    """Give up what root may do beyond its own files."""
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _checked(_LIBC.capset(header, nothing), "capset")


def _landlock() -> None:
    """Write only in the working folder, read only there, in Python and in the system's libraries, execute nothing."""
    create, add, restrict = 444, 445, 446
    version = _LIBC.syscall(ctypes.c_long(create), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < 1:
        raise CannotIsolate("the kernel has no Landlock, which Linux 5.13 brought")
    execute, write, read, folder = 1 << 0, 1 << 1, 1 << 2, 1 << 3
    handled = (1 << (13 + (version >= 2) + (version >= 3))) - 1
    ruleset = _checked(
        _LIBC.syscall(ctypes.c_long(create), struct.pack("=Q", handled), ctypes.c_size_t(8), ctypes.c_uint(0)), "landlock"
    )
    own = handled & ~execute & ~(1 << 6 | 1 << 11)  # neither programs nor devices
    places = dict.fromkeys(_readable(), read | folder) | {os.devnull: read | write, os.getcwd(): own}
    for path, rights in places.items():
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= write | read
        rule = struct.pack("=Qi", rights, opened)
        _checked(_LIBC.syscall(ctypes.c_long(add), ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0)), "landlock")
        os.close(opened)
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _checked(_LIBC.syscall(ctypes.c_long(restrict), ctypes.c_int(ruleset), ctypes.c_uint(0)), "landlock")
    os.close(ruleset)


def _readable() -> list[str]:
    """What Python needs to import: itself, its packages and shared libraries."""
    wanted = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path]
    wanted += ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime"]
    wanted += ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    return [path for path in dict.fromkeys(wanted) if path and os.path.exists(path)]


def _seccomp() -> None:
    """Refuse the calls of `_NUMBERS` and those of `_GUARDED` with EPERM, processes but not threads, and raised limits."""
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        raise CannotIsolate(f"there is no list of system calls for {os.uname().machine}")
    audit, column, clone, prlimit = machine
    load, equal, at_least, has_bits, give, only = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54
    allow, kill, refuse, absent = 0x7FFF0000, 0x80000000, 0x50001, 0x50026  # EPERM; ENOSYS makes libc use an older call
    number, architecture, argument = 0, 4, 16
    lines = [(load, 0, 0, architecture), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, number)]
    if column == 0:
        lines += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 numbers of the same calls
    for numbers in _NUMBERS.values():
        if (refused := numbers[column]) is not None:
            lines += [(equal, 0, 1, refused), (give, 0, 0, refuse)]
    lines += [(equal, 0, 1, _CLONE3), (give, 0, 0, absent), (equal, 0, 1, _OPENAT2), (give, 0, 0, absent)]
    for numbers, index, mask, values in _GUARDED:
        if (guarded := numbers[column]) is not None:
            lines += [(equal, 0, len(values) + 4, guarded), (load, 0, 0, argument + 8 * index), (only, 0, 0, mask)]
            lines += [(equal, len(values) - place, 0, value) for place, value in enumerate(values)]
            lines += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    lines += [
        (equal, 0, 4, clone),
        (load, 0, 0, argument),
        (has_bits, 1, 0, _CLONE_THREAD),
        (give, 0, 0, refuse),
        (give, 0, 0, allow),
    ]
    new = argument + 2 * 8  # the third argument of prlimit64 is the new limit, or null
    lines += [
        (equal, 0, 5, prlimit),
        (load, 0, 0, new),
        (equal, 0, 2, 0),
        (load, 0, 0, new + 4),
        (equal, 1, 0, 0),
        (give, 0, 0, refuse),
    ]
    lines += [(give, 0, 0, allow)]
    program = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(buffer)))
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _checked(_LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(head), 0, 0), "seccomp")


if __name__ == "__main__":
    main()
