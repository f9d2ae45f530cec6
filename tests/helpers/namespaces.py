"""Network namespaces joined by a bridge: nodes with their own addresses on this machine.

Their names begin with `bert` and the process id; the block that creates them removes them. Their addresses, from a
range for documentation (RFC 5737), cannot be reached from outside.
"""

import contextlib
import os
import subprocess

_NETWORK = "198.51.100"


def reason_for_none():
    """Returns why this machine cannot create network namespaces, or None if it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    name = f"bert{os.getpid()}try"
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return "needs the command ip (package iproute2), to make network namespaces"
    except subprocess.CalledProcessError as error:
        return f"cannot make network namespaces: {error.stderr.strip()}"
    _ip("netns", "del", name)
    return None


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Nodes:
    """`count` nodes. The bridge between them has its own namespace, so the machine's network is not involved."""

    def __init__(self, count):
        self._switch = f"bert{os.getpid()}s"
        self._namespaces = [f"bert{os.getpid()}n{index}" for index in range(count)]
        self.addresses = [f"{_NETWORK}.{index + 11}" for index in range(count)]

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self):
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "bridge", "up")
        for index, (namespace, address) in enumerate(zip(self._namespaces, self.addresses, strict=True)):
            _ip("netns", "add", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            peer = ("peer", "name", f"port{index}", "netns", self._switch)
            _ip("-n", namespace, "link", "add", "eth0", "type", "veth", *peer)
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")
            _ip("-n", self._switch, "link", "set", f"port{index}", "master", "bridge")
            _ip("-n", self._switch, "link", "set", f"port{index}", "up")

    def __exit__(self, *exception):
        for namespace in (*self._namespaces, self._switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                for process_id in self._process_ids(namespace):
                    os.kill(process_id, 9)
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", namespace)

    @staticmethod
    def _process_ids(namespace):
        found = subprocess.run(["ip", "netns", "pids", namespace], check=True, capture_output=True, text=True)
        return [int(process_id) for process_id in found.stdout.split()]

    def prefix(self, index):
        """Returns the command prefix that runs a command on a node."""
        return ["ip", "netns", "exec", self._namespaces[index]]

    def take_down(self, index):
        """Takes the link of a node down, so that the node sees it."""
        _ip("-n", self._namespaces[index], "link", "set", "eth0", "down")

    def bring_up(self, index):
        """Brings the link of a node up again."""
        _ip("-n", self._namespaces[index], "link", "set", "eth0", "up")
