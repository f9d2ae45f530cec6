"""How much memory there is, by made-up control groups."""

import pytest

from system.limits import usable_memory

GIB = 2**30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("cgroup", "mountinfo", "files", "expected"),
    [
        ("0::/a", V2, {}, 20 * GIB),
        ("0::/a", V2, {"memory.max": "max\n", "a/memory.max": f"{8 * GIB}\n"}, 12 * GIB),
        ("0::/a", V2, {"a/memory.max": f"{8 * GIB}\n", "a/memory.swap.max": "0\n"}, 8 * GIB),
        ("0::/a", V2, {"memory.max": f"{3 * GIB}\n", "a/memory.max": f"{8 * GIB}\n"}, 7 * GIB),
        ("5:memory:/a\n0::/", V1, {"memory/a/memory.limit_in_bytes": f"{2 * GIB}\n"}, 6 * GIB),
        ("5:memory:/a\n0::/", V1, {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 20 * GIB),
    ],
)
def test_limits(tmp_path, cgroup, mountinfo, files, expected):
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files |= {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}
    files["proc/meminfo"] = f"MemTotal:       {16 * 2**20} kB\nMemFree:  5 kB\nSwapTotal:       {4 * 2**20} kB\n"
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_memory(tmp_path) == expected


def test_of_this_machine():
    assert usable_memory() > GIB / 4
