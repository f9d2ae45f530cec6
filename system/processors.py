"""How many processors this process may use: those that it may run on, or fewer where its control group has a quota.

A container's limit (docker run --cpus, a Kubernetes limit, systemd's CPUQuota) is a quota of processor time, of version
1 or 2 of Linux's control groups. Threads beyond it do not make a program faster: the kernel halts them all when the
quota of a tenth of a second is used up.
"""

import math
import os
import re
from pathlib import Path

# In /proc/self/mountinfo: which folder of a hierarchy is mounted, where, the version, and the options with controllers.
_MOUNT = re.compile(r"^\d+ \d+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)$", re.MULTILINE)


def usable_processors(root="/"):
    """The number of processors, at least 1; a quota of 1.5 processors is rounded up to 2.

    `root` is where proc/ is found, and the mounted control groups.
    """
    quotas = (_quota(folder) for folder in control_groups(Path(root), "cpu"))
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *quotas, math.inf)))


def control_groups(root, controller):
    """The folders of the groups that may limit this process: its own and those above it, as far as they are mounted.

    `controller` is the one of version 1 that sets the limit.
    """
    paths = {}  # version -> path of this process's group in its hierarchy
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            paths["cgroup"] = path
        elif number == "0":
            paths["cgroup2"] = path
    for *names, kind, options in _MOUNT.findall(read_text(root / "proc/self/mountinfo")):
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        mounted, point = (root / _unescaped(name).lstrip("/") for name in names)
        # In a container the path may be that on the host, of which only a part is mounted.
        group = root / paths[kind].lstrip("/")
        below = group.relative_to(mounted).parts if group.is_relative_to(mounted) else ()
        if ".." not in below:
            yield from (point.joinpath(*below[:depth]) for depth in range(len(below) + 1))


def _quota(folder):
    """The quota of a control group, in processors; infinity if it has none."""
    quota, _, period = read_text(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
    try:
        quota, period = int(quota), int(period)
    except ValueError:  # `max`, or nothing that can be read
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def read_text(path):
    """What a file of the system's says, empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _unescaped(name):
    r"""A name of mountinfo, which has \040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)
