"""The processors and the memory that this process may use: the machine's, or less by its limits.

Container limits (docker run --cpus, Kubernetes limits, systemd's CPUQuota) are limits of control groups v1 or v2.
Threads beyond the quota of processor time gain nothing: the kernel stops all threads once that of a period is used.
"""

import math
import os
import re
from pathlib import Path

# A line of /proc/self/mountinfo: mounted folder of the hierarchy, mount point, file system type, options.
_MOUNT = re.compile(r"^\d+ \d+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)$", re.MULTILINE)


def usable_processors(root="/"):
    """Returns the number of processors by CPU affinity and quota, at least 1; a quota of 1.5 is rounded up to 2.

    `root` is the folder that holds proc/ and the mounted control groups.
    """
    quotas = (_quota(folder) for folder in _control_groups(Path(root), "cpu"))
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *quotas, math.inf)))


def usable_memory(root="/"):
    """Returns the bytes of the machine's memory and swap, or of less where a control group has a limit.

    Those that are in use count too. `root` is as for usable_processors.
    """
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", _read_text(Path(root) / "proc/meminfo"), re.MULTILINE))
    memory, swap = (1024 * int(sizes.get(name, 0)) for name in ("MemTotal", "SwapTotal"))
    limits = []
    for folder in _control_groups(Path(root), "memory"):
        limit = _bytes_in(folder / "memory.max") or _bytes_in(folder / "memory.limit_in_bytes")
        if limit is not None:
            swap_limit = _bytes_in(folder / "memory.swap.max")
            limits.append(limit + (swap if swap_limit is None else min(swap, swap_limit)))
    return min([memory + swap, *limits])


def _control_groups(root, controller):
    """Yields the folders of this process's control groups and their mounted parents.

    `controller` is the controller of version 1 that sets the limit.
    """
    paths = {}  # version -> path of this process's group in its hierarchy
    for line in _read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            paths["cgroup"] = path
        elif number == "0":
            paths["cgroup2"] = path
    for *names, kind, options in _MOUNT.findall(_read_text(root / "proc/self/mountinfo")):
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        mounted, point = (root / _unescaped(name).lstrip("/") for name in names)
        # In a container the path may be the host's, of which only a part is mounted.
        group = root / paths[kind].lstrip("/")
        below = group.relative_to(mounted).parts if group.is_relative_to(mounted) else ()
        if ".." not in below:
            yield from (point.joinpath(*below[:depth]) for depth in range(len(below) + 1))


def _quota(folder):
    """Returns the quota of a control group in processors, or infinity."""
    quota, _, period = _read_text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read_text(folder / "cpu.cfs_quota_us"), _read_text(folder / "cpu.cfs_period_us")
    try:
        quota, period = int(quota), int(period)
    except ValueError:  # `max`, or unreadable
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _bytes_in(path):
    """Returns the bytes that a file of a control group names; None where it names none."""
    text = _read_text(path).strip()
    return int(text) if text.isdecimal() else None


def _read_text(path):
    """What a file of the system's says, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _unescaped(name):
    r"""Decodes the octal escapes of mountinfo, such as \040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
