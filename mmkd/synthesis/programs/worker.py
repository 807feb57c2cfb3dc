"""The confinement of one sandbox worker, and its start. Copied into a launcher: standard library only.

The interpreter is the boundary; this is what stands behind it should it have a hole. Limits of the process, an empty
environment and folder, no gain of rights by exec, no sockets, no new processes, and where the kernel lets an
ordinary user do so a network namespace with nothing in it.
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

# (audit architecture, numbers of: socket, socketpair, connect, bind, ptrace, process_vm_readv, process_vm_writev,
#  fork, vfork, mount, bpf, perf_event_open, io_uring_setup, open_by_handle_at, kill, setns, unshare, userfaultfd)
DENIED = {
    "x86_64": (
        0xC000003E,
        (41, 53, 42, 49, 101, 310, 311, 57, 58, 165, 321, 298, 425, 304, 62, 308, 272, 323),
    ),
    "aarch64": (0xC00000B7, (198, 199, 203, 200, 117, 270, 271, 40, 280, 241, 425, 265, 129, 268, 97, 282)),
}


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
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and platform.machine() in DENIED and sys.maxsize > 2**32:
        program = seccomp_filter(*DENIED[platform.machine()])
        buffer = ctypes.create_string_buffer(program, len(program))
        # struct sock_fprog: number of instructions, pointer
        fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
        libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(fprog), 0, 0)


def seccomp_filter(architecture: int, denied: tuple[int, ...]) -> bytes:
    """Classic BPF: another architecture, or x32 -> killed; a denied call -> EPERM; else allowed."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    code = [
        (load, 0, 0, 4),  # architecture
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # number of the call
        (at_least, 0, 1, 0x40000000),
        (give, 0, 0, kill),
    ]
    for place, number in enumerate(denied):
        code.append((equal, len(denied) - place, 0, number))
    code += [(give, 0, 0, allow), (give, 0, 0, refuse)]
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
