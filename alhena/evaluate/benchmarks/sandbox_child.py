"""The process of :mod:`alhena.evaluate.benchmarks.sandbox`, a program of its own: limits itself, then runs the program from its standard input."""

import ctypes
import os
import platform
import resource
import struct
import sys

TOKEN = 32
# A file that the program opens for writing would be cut at this size; none is opened (see FLAGS).
FILE_BYTES = 1 << 16
# Numbers of the system calls that a program may make: memory, its open files, clocks, random numbers, its end.
CALLS = {
    "x86_64": (
        0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 20, 21, 23, 24, 25, 28, 32, 35, 39, 60, 63, 78, 79, 89, 96, 97,
        98, 99, 100, 102, 104, 107, 108, 110, 131, 186, 201, 202, 204, 217, 218, 219, 228, 229, 230, 231, 262, 267, 269, 270, 271, 273,
        318, 332, 334, 439,
    ),
    "aarch64": (
        17, 23, 48, 61, 62, 63, 64, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98, 99, 101, 113, 114, 115, 123, 124, 128, 132,
        134, 135, 139, 153, 160, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226, 233, 278, 291, 293, 439,
    ),
}  # fmt: skip
# Of open and openat: the argument with the flags; and the flags that write: O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND.
OPEN = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
FLAGS = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Statements of a filter (linux/bpf_common.h): load a word, jump if equal, jump if a bit is set, return.
LOAD, EQUAL, BITS, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050001, 0x80000000


def filter_program(machine):
    """The statements of the filter: other calls fail with EPERM, calls of another architecture end the process."""
    out = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCHITECTURE[machine]), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for number, argument in OPEN[machine]:
        # data.args begin at byte 16, 8 bytes each.
        out += [
            (EQUAL, 0, 4, number),
            (LOAD, 0, 0, 16 + 8 * argument),
            (BITS, 1, 0, FLAGS),
            (RETURN, 0, 0, ALLOW),
            (RETURN, 0, 0, DENY),
        ]
    for number in CALLS[machine]:
        out += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]
    return [*out, (RETURN, 0, 0, DENY)]


def isolate():
    """Allows this process nothing but the listed system calls from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    statements = filter_program(platform.machine())
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *statement) for statement in statements))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    program = Program(len(statements), ctypes.addressof(code))
    # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
        sys.exit(f"the process cannot be isolated: {os.strerror(ctypes.get_errno())}")


def main():
    seconds, memory = int(sys.argv[1]), int(sys.argv[2])
    data = sys.stdin.buffer.read()
    token, source = data[:TOKEN], data[TOKEN:].decode()
    limits = {"CPU": seconds, "AS": memory, "FSIZE": FILE_BYTES, "NOFILE": 32, "CORE": 0, "STACK": 64 << 20}
    for name, limit in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    sys.argv[:] = ["program"]
    isolate()
    # A program of its own: none of our names.
    for name in ("ctypes", "resource", "struct", "platform"):
        sys.modules.pop(name, None)
    exec(compile(source, "program", "exec"), {"__name__": "__main__"})
    sys.stdout.flush()
    os.write(1, token)


if __name__ == "__main__":
    main()
