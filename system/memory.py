"""How much memory this process may use: the machine's with its swap, or less where its control group has a limit."""

import re
from pathlib import Path

from system.processors import control_groups, read_text


def usable_memory(root="/"):
    """Bytes, those that are in use included. `root` is where proc/ is found, and the mounted control groups."""
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", read_text(Path(root) / "proc/meminfo"), re.MULTILINE))
    memory, swap = (1024 * int(sizes.get(name, 0)) for name in ("MemTotal", "SwapTotal"))
    limits = []
    for folder in control_groups(Path(root), "memory"):
        limit = _limit(folder / "memory.max") or _limit(folder / "memory.limit_in_bytes")
        if limit is not None:
            swap_limit = _limit(folder / "memory.swap.max")
            limits.append(limit + (swap if swap_limit is None else min(swap, swap_limit)))
    return min([memory + swap, *limits])


def _limit(path):
    """The bytes that a file of a control group names; None where it names none."""
    text = read_text(path).strip()
    return int(text) if text.isdecimal() else None
