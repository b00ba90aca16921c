"""Full disks and too little memory, simulated by the limits of a process. Linux only."""

import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


@contextmanager
def limited(limit: int, value: int, pid: int = 0) -> Iterator[None]:
    """Lower a limit, such as `resource.RLIMIT_AS`, of a process for a while; pid 0 is this process."""
    soft, hard = resource.prlimit(pid, limit)
    resource.prlimit(pid, limit, (value, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, limit, (soft, hard))


def full_disk(n_bytes: int, pid: int = 0) -> AbstractContextManager[None]:
    """Let no file of a process grow beyond `n_bytes`."""
    return limited(resource.RLIMIT_FSIZE, n_bytes, pid)


def memory_left(n_bytes: int, pid: int = 0) -> AbstractContextManager[None]:
    """Let a process allocate at most `n_bytes` more than it has now."""
    return limited(resource.RLIMIT_AS, virtual_memory(pid) + n_bytes, pid)


def virtual_memory(pid: int = 0) -> int:
    """Return the size in bytes of a process's address space."""
    status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    return 1024 * int(status.split("VmSize:")[1].split()[0])
