"""The confinement of one sandbox worker, and its start. Copied into a launcher: standard library only.

The interpreter is the boundary; this is what stands behind it should it have a hole. Limits of the process, an empty
environment and folder, no gain of rights by exec, no sockets, no new processes, no signals to others, nothing written,
moved or removed on disk, and where the kernel lets an ordinary user do so a network namespace with nothing in it. What
the user may read, it may read.
"""

import ctypes
import os
import platform
import resource
import struct
import sys

MEMORY = 1 << 30  # bytes of address space
CPU = 3600  # seconds over the life of a worker; one program's limit is the interpreter's
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000

CLONE_THREAD = 0x00010000
EPERM, ENOSYS = 1, 38
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Audit architecture, then calls by number. Those that some argument decides about: see seccomp_filter.
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
DECIDED = {
    "x86_64": {"clone": 56, "tgkill": 234, "prlimit64": 302, "open": 2, "openat": 257},
    "aarch64": {"clone": 220, "tgkill": 131, "prlimit64": 261, "openat": 56},
}
# Their arguments are in memory, where a filter cannot read them: they "do not exist", and the C library uses others.
UNREAD = {"clone3": 435, "openat2": 437}  # on both
# fmt: off
DENIED = {
    "x86_64": (
        41, 53, 42, 49,  # socket, socketpair, connect, bind
        101, 310, 311, 312,  # ptrace, process_vm_readv, process_vm_writev, kcmp
        165, 166, 155, 161,  # mount, umount2, pivot_root, chroot
        321, 298, 323, 304,  # bpf, perf_event_open, userfaultfd, open_by_handle_at
        57, 58, 272, 308,  # fork, vfork, unshare, setns
        62, 200, 129, 297,  # kill, tkill, rt_sigqueueinfo, rt_tgsigqueueinfo
        141, 142, 144, 203, 314,  # setpriority, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr
        248, 249, 250,  # add_key, request_key, keyctl
        85, 76, 77, 285,  # creat, truncate, ftruncate, fallocate
        87, 263, 84, 82, 264, 316,  # unlink, unlinkat, rmdir, rename, renameat, renameat2
        83, 258, 133, 259, 88, 266, 86, 265,  # mkdir, mkdirat, mknod, mknodat, symlink, symlinkat, link, linkat
        90, 91, 268, 92, 93, 94, 260,  # chmod, fchmod, fchmodat, chown, fchown, lchown, fchownat
        132, 235, 261, 280,  # utime, utimes, futimesat, utimensat
        188, 189, 190, 197, 198, 199,  # setxattr, lsetxattr, fsetxattr, removexattr, lremovexattr, fremovexattr
    ),
    "aarch64": (
        198, 199, 203, 200, 117, 270, 271, 272, 40, 39, 41, 51, 280, 241, 282, 265, 97, 268, 129, 130, 138, 240,
        140, 118, 119, 122, 274, 217, 218, 219, 45, 46, 47, 35, 38, 276, 34, 33, 36, 37, 52, 53, 54, 55, 88,
        5, 6, 7, 14, 15, 16,
    ),
}
# io_uring_setup, pidfd_send_signal, pidfd_open, pidfd_getfd, process_madvise, process_mrelease, open_tree, move_mount,
# fsopen, mount_setattr, fchmodat2
DENIED_ON_BOTH = (425, 424, 434, 438, 440, 448, 428, 429, 430, 442, 452)
# fmt: on


def limit() -> None:
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, CPU),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        hard = resource.getrlimit(what)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (value, value))


def confine() -> None:
    """As much of it as this kernel allows; what it refuses is left out, for the interpreter holds alone too."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC)
    machine = platform.machine()
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and machine in ARCHITECTURE and sys.maxsize > 2**32:
        denied = (*DENIED[machine], *DENIED_ON_BOTH)
        program = seccomp_filter(ARCHITECTURE[machine], DECIDED[machine], denied, os.getpid())
        buffer = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: number of instructions, pointer
        fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
        libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(fprog), 0, 0)


def seccomp_filter(architecture: int, decided: dict, denied: tuple, own: int) -> bytes:
    """Classic BPF: another architecture, or x32 -> killed; a denied call -> EPERM; else allowed.

    Of those that an argument decides about, EPERM for: clone of a process, a signal to a thread of another process than
    `own` (abort() sends itself one), limits of another process, and opening for anything but reading.
    """
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, error, allow = 0x80000000, 0x00050000, 0x7FFF0000

    def when(number: int, *then: tuple) -> list:
        return [(equal, 0, len(then), number), *then]

    def if_argument(place: int, test: int, value: int, yes: int, no: int) -> list:
        # Lower half of the argument: pids and flags have no upper one.
        return [(load, 0, 0, 16 + 8 * place), (test, 0, 1, value), (give, 0, 0, yes), (give, 0, 0, no)]

    refused = error | EPERM
    decisions = {
        "clone": if_argument(0, has_bits, CLONE_THREAD, allow, refused),
        "tgkill": if_argument(0, equal, own, allow, refused),
        "prlimit64": if_argument(0, equal, 0, allow, refused),
        "open": if_argument(1, has_bits, WRITING, refused, allow),
        "openat": if_argument(2, has_bits, WRITING, refused, allow),
    }
    code = [
        (load, 0, 0, 4),  # architecture
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # number of the call
        (at_least, 0, 1, 0x40000000),
        (give, 0, 0, kill),
    ]
    for number in UNREAD.values():
        code += when(number, (give, 0, 0, error | ENOSYS))
    for name, number in decided.items():
        code += when(number, *decisions[name])
    for number in denied:
        code += when(number, (give, 0, 0, refused))
    code.append((give, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *one) for one in code)


def main() -> None:
    folder = os.path.dirname(os.path.abspath(sys.argv[0]))
    binary = os.path.realpath(os.path.join(folder, "monty"))
    os.chdir(os.path.join(folder, "empty"))
    limit()
    confine()
    os.execve(binary, [binary, *sys.argv[1:]], {})


if __name__ == "__main__":
    main()
