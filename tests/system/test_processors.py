"""How many processors there are, by made-up control groups."""

import os

import pytest

from system.limits import usable_processors

# Lines of /proc/self/mountinfo; the fourth field is the part of the hierarchy that is mounted, the fifth where.
V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 30 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 30 0:28 {root} /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)
GROUPS_V1 = "9:cpuset:{path}\n4:cpu,cpuacct:{path}\n0::/\n"


@pytest.fixture
def count(tmp_path, monkeypatch):
    """count(cgroup, mountinfo, {file of a group: text}) is what is found on a machine of 16 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))

    def count(cgroup, mountinfo, files):
        files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
        for name, text in {**files, "proc/self/cgroup": cgroup, "proc/self/mountinfo": mountinfo}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return usable_processors(tmp_path)

    return count


@pytest.mark.parametrize(
    ("path", "root", "files", "expected"),
    [
        ("/", "/", {"cpu.max": "200000 100000\n"}, 2),
        ("/", "/", {"cpu.max": "150000 100000\n"}, 2),
        ("/", "/", {"cpu.max": "5000 100000\n"}, 1),
        ("/", "/", {"cpu.max": "max 100000\n"}, 16),
        ("/", "/", {"cpu.max": "6400000 100000\n"}, 16),
        ("/", "/", {}, 16),
        ("/", "/", {"cpu.max": "damaged"}, 16),
        # The tightest of the groups above counts.
        ("/a b/c", "/", {"a b/cpu.max": "300000 100000\n", "a b/c/cpu.max": "max 100000\n"}, 3),
        ("/a/c", "/", {"a/cpu.max": "300000 100000\n", "a/c/cpu.max": "100000 50000\n"}, 2),
        # In a container the group's own folder is at the mount point.
        ("/docker/1", "/docker/1", {"cpu.max": "400000 100000\n"}, 4),
        ("/docker/1/sub", "/docker/1", {"cpu.max": "400000 100000\n", "sub/cpu.max": "100000 100000"}, 1),
        ("/elsewhere", "/docker/1", {"cpu.max": "400000 100000\n"}, 4),
        ("/../../x", "/", {"cpu.max": "400000 100000\n"}, 16),
    ],
)
def test_version_2(count, path, root, files, expected):
    assert count(f"0::{path}\n", V2.format(root=root), files) == expected


@pytest.mark.parametrize(
    ("path", "root", "folder", "quota", "expected"),
    [
        ("/", "/", "", "250000", 3),
        ("/", "/", "", "-1", 16),
        ("/docker/1", "/docker/1", "", "100000", 1),
        ("/a/b", "/", "a/", "700000", 7),
    ],
)
def test_version_1(count, path, root, folder, quota, expected):
    files = {f"cpu,cpuacct/{folder}cpu.cfs_quota_us": quota, f"cpu,cpuacct/{folder}cpu.cfs_period_us": "100000\n"}
    files["cpuset/cpu.cfs_quota_us"] = "1"
    assert count(GROUPS_V1.format(path=path), V1.format(root=root), files) == expected


def test_both_versions(count):
    """Version 2 without a controller for processors, as on systems that still use version 1 for them."""
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "500000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    unified = V2.format(root="/").replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    assert count(GROUPS_V1.format(path="/"), V1.format(root="/") + unified, files) == 5


@pytest.mark.parametrize("mountinfo", ["", "\n", "x\n", "1 2 3 - \n", "1 2 3 4 5 - cgroup2\n"])
def test_without_control_groups(count, mountinfo):
    assert count("\nx\n", mountinfo, {}) == 16
    assert count("0::/\n", mountinfo, {}) == 16


def test_this_machine():
    assert 1 <= usable_processors() <= len(os.sched_getaffinity(0))
