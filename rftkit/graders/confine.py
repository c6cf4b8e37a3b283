"""Give up permanently what a grader does not need: Landlock for files, seccomp for the rest.

Both work without privileges, in plain containers, as root and as anybody, from Linux 5.13 on, for
x86-64 and aarch64. Two packages were tried first. bubblewrap wants user namespaces, which plain
containers and recent Ubuntu refuse. sandlock 0.9 is as fast, but wants Linux 6.12, runs a
supervisor inside our own process, and let a grader change modes and times of files outside its
folders, make Unix sockets and set the limits of its parent; each is a test here.

Afterwards this process cannot: open a file outside the given folders (read) and its scratch folder
(write), make a socket, start a process, signal or trace another one, change modes, owners, times
or links, use io_uring, bpf, keys or shared memory, gain privileges, outlive its parent, or undo any
of it. System calls are denied unless listed. As root it also loses every capability. Where a
process may have a mount namespace, its scratch folder is a file system in memory with a size and a
number of files; elsewhere `processes` counts.

Not covered: whether a path exists, and its size and times, can still be asked (`stat`); memory is
limited by address space, so libraries that reserve a lot of it may need a higher limit. Uses the
standard library only and imports nothing of rftkit: the worker runs it by path.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping

__all__ = ["confine", "die_with_parent", "missing", "mount_scratch"]

_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (column below, AUDIT_ARCH)."""

_ALLOWED = """
read 0 63, write 1 64, open 2 -, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62,
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
rt_sigreturn 15 139, ioctl 16 29, pread64 17 67, pwrite64 18 68, readv 19 65, writev 20 66,
access 21 -, pipe 22 -, select 23 -, sched_yield 24 124, mremap 25 216, msync 26 227,
mincore 27 232, madvise 28 233, dup 32 23, dup2 33 -, pause 34 -, nanosleep 35 101,
getitimer 36 102, alarm 37 -, setitimer 38 103, getpid 39 172, sendfile 40 71, sendto 44 206,
recvfrom 45 207, shutdown 48 210, socketpair 53 199, clone 56 220, exit 60 93, kill 62 129,
uname 63 160, fcntl 72 25, flock 73 32, fsync 74 82, fdatasync 75 83, ftruncate 77 46,
getdents 78 -, getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -,
unlink 87 -, symlink 88 -, readlink 89 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158, getpgid 121 155, getsid 124 156,
capget 125 90, rt_sigpending 127 136, rt_sigtimedwait 128 137, sigaltstack 131 132, statfs 137 43,
fstatfs 138 44, getpriority 140 141, prctl 157 167, arch_prctl 158 -, gettid 186 178, time 201 -,
futex 202 98, sched_getaffinity 204 123, getdents64 217 61, set_tid_address 218 96,
restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113, clock_getres 229 114,
clock_nanosleep 230 115, exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, tgkill 234 131,
openat 257 56, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38,
symlinkat 266 36, readlinkat 267 78, faccessat 269 48, pselect6 270 72, ppoll 271 73,
set_robust_list 273 99, epoll_pwait 281 22, fallocate 285 47, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70, prlimit64 302 261,
getcpu 309 168, renameat2 316 276, getrandom 318 278, membarrier 324 283, copy_file_range 326 285,
preadv2 327 286, pwritev2 328 287, statx 332 291, rseq 334 293, close_range 436 436,
faccessat2 439 439, epoll_pwait2 441 441
"""
"""Name, x86-64 number, aarch64 number ("-": does not exist there)."""

_CLONE3 = 435
_CLONE_THREAD, _O_TRUNC, _O_ACCMODE = 0x10000, 0o1000, 0o3
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # terminal? size? FIO*
# without F_SETOWN and F_SETSIG, which send signals to other processes
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032)
_PRCTLS = (15, 16)  # the name of a thread

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_DENY = (_RETURN, 0, 0, _ERRNO | errno.EPERM)

# Landlock rights by bit: 0 execute, 1 write file, 2 read file, 3 read dir, 4 remove dir,
# 5 remove file, 6 make char, 7 make dir, 8 make file, 9 make socket, 10 make fifo, 11 make block,
# 12 make symlink, 13 refer (ABI 2), 14 truncate (ABI 3), 15 ioctl on devices (ABI 5)
_READ = 1 << 2 | 1 << 3
_WRITE = _READ | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14
_FILE_ONLY = 1 << 1 | 1 << 2 | 1 << 14

Condition = tuple[int, int, Iterable[int]]
"""(argument, mask or 0 for the whole argument, values of which one must match)."""


def missing() -> str | None:
    """Why this machine cannot confine a process, in words; None when it can."""
    if sys.platform != "linux":
        return f"{platform.system()} has no Landlock and no seccomp"
    if platform.machine() not in _ARCHES:
        return f"no table of system calls for {platform.machine()}"
    if _landlock_abi() < 1:
        return "the kernel offers no Landlock (Linux 5.13 or later, with landlock among its LSMs)"
    return None


def confine(
    *,
    readable: Iterable[str],
    scratch: str,
    memory_bytes: int,
    scratch_bytes: int,
    parent: int,
    scratch_files: int | None = None,
) -> None:
    """Confine the calling process, which must have one thread. There is no way back.

    With `scratch_files` the kernel holds the scratch folder to that many files and its size.

    Raises:
        OSError: the kernel refused; nothing may run then.
    """
    if scratch_files is not None:
        mount_scratch(scratch, scratch_bytes, scratch_files)
    _limit(memory_bytes, scratch_bytes)
    _prctl(38, 1)  # no new privileges
    _restrict_files(readable, scratch)
    _drop_capabilities()
    die_with_parent(parent)
    _filter_calls(_program(platform.machine(), os.getpid()))


def mount_scratch(scratch: str, most_bytes: int, most_files: int) -> None:
    """Put an empty file system in memory over the scratch folder, for this process alone.

    It is gone with the process, and the kernel itself says when it is full.

    Raises:
        OSError: the kernel refused.
    """
    uid, gid = os.geteuid(), os.getegid()
    if _libc().unshare(0x00020000):  # a mount namespace; without privilege only in a user's own
        _call("unshare", 0x10000000 | 0x00020000)
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"),
        ):  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    # make all mounts private, recursively
    _call("mount", b"none", b"/", None, 0x40000 | 0x4000, None)
    options = f"size={most_bytes},nr_inodes={most_files},mode=0700"
    _call("mount", b"tmpfs", os.fsencode(scratch), b"tmpfs", 2 | 4, options.encode())


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it is gone."""
    if sys.platform == "linux":
        _prctl(1, 9)
    if os.getppid() != parent:
        os._exit(1)


def _limit(memory_bytes: int, scratch_bytes: int) -> None:
    import resource

    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: scratch_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _restrict_files(readable: Iterable[str], scratch: str) -> None:
    abi = _landlock_abi()
    handled = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    attributes = struct.pack("=QQQ", handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = _syscall(444, attributes[:size], size, 0)
    rules = dict.fromkeys(readable, _READ)
    rules |= {"/dev/null": 1 << 1 | 1 << 2, "/dev/urandom": 1 << 2, "/dev/zero": 1 << 2}
    for path, rights in (rules | {scratch: _WRITE}).items():
        _allow_path(ruleset, path, rights & handled)
    _syscall(446, ruleset, 0)
    os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _FILE_ONLY
    _syscall(445, ruleset, 1, struct.pack("=Qi", rights, fd), 0)
    os.close(fd)


def _drop_capabilities() -> None:
    for capability in range(64):
        if _libc().prctl(24, capability, 0, 0, 0):
            break  # past the last capability, or there is none to drop
    header = struct.pack("=Ii", 0x20080522, 0)
    if _libc().capset(header, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def _program(machine: str, pid: int) -> bytes:
    """The seccomp filter: foreign architectures die, listed calls pass, the rest is EPERM."""
    column, arch = _ARCHES[machine]
    numbers = _numbers(column)
    conditions: Mapping[str, list[Condition]] = {
        "clone": [(0, _CLONE_THREAD, [_CLONE_THREAD])],
        "kill": [(0, 0, [pid])],
        "tgkill": [(0, 0, [pid])],
        "prlimit64": [(0, 0, [0]), (2, 0, [0])],
        "ioctl": [(1, 0, _IOCTLS)],
        "fcntl": [(1, 0, _FCNTLS)],
        "prctl": [(0, 0, _PRCTLS)],
        # fallocate modes can allocate blocks beyond the file's size
        "fallocate": [(1, 0, [0])],
        # asyncio needs an unnamed socket pair; it cannot reach anything else
        "socketpair": [(0, 0, [1]), (1, 0xF, [1])],
        # a truncating open for reading would slip past early versions of Landlock
        "open": [(1, _O_TRUNC | _O_ACCMODE, [0, 1, 2, _O_TRUNC | 1, _O_TRUNC | 2])],
        "openat": [(2, _O_TRUNC | _O_ACCMODE, [0, 1, 2, _O_TRUNC | 1, _O_TRUNC | 2])],
    }
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # refuse the x32 system calls
    # glibc falls back to clone, whose flags a filter can see
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, number in numbers.items():
        body = [step for condition in conditions.get(name, []) for step in _check(*condition)]
        body.append((_RETURN, 0, 0, _ALLOW))
        code += [(_EQUAL, 0, len(body), number), *body]
    code.append(_DENY)
    return b"".join(struct.pack("=HBBI", *step) for step in code)


def _check(argument: int, mask: int, values: Iterable[int]) -> list[tuple[int, int, int, int]]:
    """Continue if the argument matches one of the values; otherwise deny."""
    values, low = list(values), 16 + 8 * argument
    code = [] if mask else [(_LOAD, 0, 0, low + 4), (_EQUAL, 1, 0, 0), _DENY]
    code.append((_LOAD, 0, 0, low))
    if mask:
        code.append((_AND, 0, 0, mask))
    code += [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [*code, _DENY]


def _numbers(column: int) -> dict[str, int]:
    rows = (row.split() for row in _ALLOWED.split(","))
    return {name: int(row[column]) for name, *row in rows if row[column] != "-"}


def _filter_calls(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _prctl(22, 2, header)


def _landlock_abi() -> int:
    try:
        return _syscall(444, None, 0, 1)
    except (OSError, AttributeError):
        return 0


def _call(name: str, *args: int | bytes | None) -> None:
    if getattr(_libc(), name)(*map(_argument, args)):
        raise OSError(ctypes.get_errno(), name)


def _prctl(option: int, *args: int | bytes) -> None:
    padded = [*args, 0, 0, 0, 0][:4]
    if _libc().prctl(option, *map(_argument, padded)):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _syscall(number: int, *args: int | bytes | None) -> int:
    result = _libc().syscall(ctypes.c_long(number), *map(_argument, args))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return int(result)


def _argument(value: int | bytes | None) -> ctypes.c_long | ctypes.c_char_p | None:
    return ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
