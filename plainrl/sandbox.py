"""What a grading worker may do: compute, and read the files that Python needs. Nothing else.

A completion is a stranger's text. Graders parse it, and a grader can have a hole. So a worker gives its
rights away before it reads the first answer, and no process can take rights back:

    limits    4 GiB of memory, no byte written to a file, few open files, no new process
    landlock  (Linux 5.13) reading only where Python and its packages lie, writing nowhere
    seccomp   (Linux 3.17) only the system calls in the table below: no socket, no program, no signal

Both parts of Linux need no package, no rights and no setting of the machine. `lock` says what does not hold
elsewhere.
"""

import ctypes
import os
import platform
import struct
import sys
from pathlib import Path

MEMORY = 4 << 30  # bytes
OPEN_FILES = 64

# fmt: off
# System calls: their numbers on x86_64 and on aarch64. What is not here fails with "not permitted".
_COMPUTE = {
    "access": (21, None), "brk": (12, 214), "clock_getres": (229, 114), "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115), "close": (3, 57), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "exit": (60, 93), "exit_group": (231, 94), "faccessat": (269, 48), "fstat": (5, 80), "futex": (202, 98),
    "getcpu": (309, 168), "getcwd": (79, 17), "getdents64": (217, 61), "getegid": (108, 177),
    "geteuid": (107, 175), "getgid": (104, 176), "getitimer": (36, 102), "getpid": (39, 172),
    "getppid": (110, 173), "getrandom": (318, 278), "getrlimit": (97, 163), "getrusage": (98, 165),
    "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174), "lseek": (8, 62),
    "lstat": (6, None), "madvise": (28, 233), "membarrier": (324, 283), "mincore": (27, 232),
    "mmap": (9, 222), "mprotect": (10, 226), "mremap": (25, 216), "munmap": (11, 215),
    "nanosleep": (35, 101), "newfstatat": (262, 79), "pipe": (22, None), "pipe2": (293, 59),
    "poll": (7, None), "ppoll": (271, 73), "pread64": (17, 67), "pselect6": (270, 72), "read": (0, 63),
    "readlink": (89, None), "readlinkat": (267, 78), "readv": (19, 65), "restart_syscall": (219, 128),
    "rseq": (334, 293), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123), "sched_yield": (24, 124), "select": (23, None),
    "set_robust_list": (273, 99), "set_tid_address": (218, 96), "setitimer": (38, 103),
    "sigaltstack": (131, 132), "stat": (4, None), "statx": (332, 291), "sysinfo": (99, 179),
    "times": (100, 153), "uname": (63, 160), "write": (1, 64), "writev": (20, 66),
}
# To make a child that is locked further, watch it and end it.
_FORK = {
    "clone": (56, 220), "fork": (57, None), "kill": (62, 129), "prctl": (157, 167), "prlimit64": (302, 261),
    "seccomp": (317, 277), "wait4": (61, 260),
}
# Opening a file, to read it. The third number says which argument has the flags.
_OPEN = {"open": (2, None, 1), "openat": (257, 56, 2)}
# Asking about an open file and duplicating it. More of fcntl can have signals sent to others.
_FCNTL = (72, 25)
_FCNTL_ALLOWED = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_SECCOMP = (317, 277)
# fmt: on
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as seccomp calls them
# Calls from here on fail as if the kernel did not know them: then the C library takes older ones.
_NEWER = 425
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def lock(may_fork: bool = False) -> list[str]:
    """Give up all rights but computing and reading Python's files. Returns what could not be given up.

    `may_fork` keeps the right to make children, which can be locked in turn. Threads that exist already keep
    their right to files on Linux, so call it before there are any.
    """
    limited = _limit(may_fork)
    files, calls = _lock_files(), _lock_calls(may_fork)
    missing = {
        "reading files": files,
        "writing files": files or calls,
        "network": calls,
        "starting programs": calls,
        "memory": limited,
    }
    return [what for what, held in missing.items() if not held]


def die_with_parent() -> None:
    """This process ends when the thread that made it ends (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL
        if os.getppid() != parent:  # it ended just before
            os._exit(1)


def limit_cpu(seconds: int) -> None:
    """The system ends this process after so much more processor time, where it can."""
    try:
        import resource  # Windows has none
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    end = int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (end, end))


def _limit(may_fork: bool) -> bool:
    """Limits of the system. Is memory limited?"""
    try:
        import resource  # Windows has none
    except ImportError:
        return False
    limits = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": OPEN_FILES, "RLIMIT_AS": MEMORY}
    if not may_fork:
        limits["RLIMIT_NPROC"] = 0  # counts for all but root
    held = True
    for name, most in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (most, most))
        except (AttributeError, ValueError, OSError):  # macOS refuses to limit memory
            held = held and name != "RLIMIT_AS"
    return held


def _readable() -> list[str]:
    """Where Python, its packages and the libraries they load lie."""
    here = Path(__file__).resolve().parent
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path, "/usr", "/lib", "/lib64", str(here)}
    places |= set(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    return sorted(place for place in places - {"", str(here.parent)} if os.path.exists(place))


def _lock_files() -> bool:
    """Landlock: read below `_readable()`, nothing else. False where the kernel has none."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    create, add, restrict = 444, 445, 446  # the same numbers on all processors
    version = libc.syscall(create, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return False
    read_file, read_dir = 1 << 2, 1 << 3
    rights_on_files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1  # all of this version
    rights_on_ports, signals_and_sockets = 3, 3
    fields = [rights_on_files, rights_on_ports, signals_and_sockets][: 1 + (version >= 4) + (version >= 6)]
    ruleset = struct.pack(f"{len(fields)}Q", *fields)
    rules = libc.syscall(create, ruleset, ctypes.c_size_t(len(ruleset)), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        for place in _readable():
            opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
            rights = read_file | read_dir if os.path.isdir(place) else read_file
            rule = struct.pack("=Qi", rights, opened)
            added = libc.syscall(add, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
            os.close(opened)
            if added < 0:
                return False
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        return libc.syscall(restrict, ctypes.c_int(rules), ctypes.c_uint32(0)) == 0
    finally:
        os.close(rules)


def _lock_calls(may_fork: bool) -> bool:
    """Seccomp: only the calls in the table. False where the kernel or the processor has none."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _MACHINES or sys.maxsize < 2**32:
        return False
    column = list(_MACHINES).index(machine)
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the kernel's filter
    allow, kill = 0x7FFF0000, 0x80000000
    not_permitted, not_known = 0x00050001, 0x00050026  # EPERM, ENOSYS
    number, processor, first_argument = 0, 4, 16  # where the kernel puts them; an argument takes 8 bytes

    # An instruction: code, how many to skip if true and if false, value.
    program = [(load, 0, 0, processor), (equal, 1, 0, _MACHINES[machine]), (give, 0, 0, kill)]
    program += [(load, 0, 0, number)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, not_permitted)]  # x86's second set of numbers
    for numbers in (_COMPUTE | _FORK if may_fork else _COMPUTE).values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (give, 0, 0, allow)]
    for *numbers, argument in _OPEN.values():
        if numbers[column] is not None:
            program += [(equal, 0, 4, numbers[column]), (load, 0, 0, first_argument + 8 * argument)]
            program += [(any_bit, 0, 1, _WRITES), (give, 0, 0, not_permitted), (give, 0, 0, allow)]
    program += [(equal, 0, 2 * len(_FCNTL_ALLOWED) + 2, _FCNTL[column]), (load, 0, 0, first_argument + 8)]
    for command in _FCNTL_ALLOWED:
        program += [(equal, 0, 1, command), (give, 0, 0, allow)]
    program += [(give, 0, 0, not_permitted)]
    program += [(at_least, 0, 1, _NEWER), (give, 0, 0, not_known), (give, 0, 0, not_permitted)]

    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    whole = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    set_filter, all_threads = 1, 1
    return libc.syscall(_SECCOMP[column], ctypes.c_int(set_filter), ctypes.c_int(all_threads), whole) == 0
