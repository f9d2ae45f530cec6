"""The nodes of a run and the line between them: who begins when all are there, and who ends when one has failed.

Each node has one launcher process (ranks/launcher.py). The launchers of nodes 1, 2, ... connect to that of node 0, the
master, at --master_port; OneFlow's own rendezvous takes the port above it. Every message is a JSON object on a line:
{"node": 1, "flags": {...}} at first; {"start": true} from the master once all are there; {"alive": true} every few
seconds; {"done": true} when a node's ranks have finished; {"stop": "why", "bad_input": false, "signal": 0} from
whoever has failed or was sent a signal, passed on to all.
"""

import contextlib
import errno
import json
import selectors
import socket
import time

from system import signals
from system.errors import RunError, UserError

HEARTBEAT_SECONDS = 2
# A node that is not heard of for so long is lost: its machine or the link is down.
SILENCE_SECONDS = 15
_LONGEST_MESSAGE = 65536


def find_node_rank(node_list, node_num, node_rank):
    """(addresses of the nodes, which of them this machine is), from --node_list, --node_num and --node_rank.

    A list may be longer than --node_num: its first names count. Raises UserError if it is too short, names a node
    twice, or does not name this machine just once.
    """
    names = [name.strip() for name in node_list.split(",") if name.strip()] if node_list else []
    if len(names) < node_num:
        raise UserError(f"--node_list has {len(names)} names, but --node_num={node_num}; name every node")
    names = names[:node_num]
    addresses = [_resolve(name) for name in names]
    for index, address in enumerate(addresses):
        if address in addresses[:index]:
            raise UserError(f"--node_list names {names[index]} twice ({address})")
    if node_rank is not None:
        if node_rank >= node_num:
            raise UserError(f"--node_rank={node_rank} is not below --node_num={node_num}")
        return addresses, node_rank
    own = [index for index, address in enumerate(addresses) if _is_own(address)]
    if not own:
        raise UserError(
            f"--node_list={','.join(names)}: none of these is an address of this machine; "
            "give its address, or its place in the list by --node_rank"
        )
    if len(own) > 1:
        both = " and ".join(names[index] for index in own)
        raise UserError(f"--node_list={','.join(names)}: {both} are both this machine; say which with --node_rank")
    return addresses, own[0]


def _resolve(name):
    try:
        address = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except (OSError, UnicodeError):
        raise UserError(f"--node_list: {name} is neither an IPv4 address nor a known host name") from None
    if address.startswith("127.") and name != address:
        # Debian's /etc/hosts gives a machine's own name such an address.
        raise UserError(
            f"--node_list: {name} is {address} on this machine, where no other node finds it; "
            "give its address in the network, or correct /etc/hosts"
        )
    return address


def _is_own(address):
    """Whether this machine has the address: only then can a socket be bound to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def check_port_is_free(address, port):
    """Raises UserError if something on this machine listens at the port already."""
    _listen(address, port).close()


def _listen(address, port):
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {address} is in use; choose another with --master_port") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--node_rank=0 is for {address}, which is not an address of this machine") from None
        raise UserError(
            f"port {port} of {address} cannot be listened at ({error.strerror}); choose another with --master_port"
        ) from None
    return listener


class Lone:
    """The line of a run on one node: there is nobody to hear from."""

    def wait_for_all(self, timeout):
        """Nothing to wait for."""

    def check(self):
        """Nobody else can fail."""

    def all_done(self):
        """The ranks of this node are all there are."""
        return True

    def say_done(self):
        """There is nobody to tell."""

    def say_stop(self, reason, bad_input=False, number=0):
        """There is nobody to tell."""


class Line:
    """This node's connections to the other nodes: the master's to all of them, any other's to the master.

    `flags` (name -> value) are those that must be the same on all nodes.
    """

    def __init__(self, addresses, node_rank, port, flags):
        self._addresses = addresses
        self._rank = node_rank
        self._port = port
        self._flags = flags
        self._peers = {}  # node rank -> _Peer
        self._selector = selectors.DefaultSelector()
        self._last_heartbeat = 0.0
        # Of no use to others than the nodes, so the master listens at the address that they know it by.
        self._listener = None
        if node_rank == 0:
            self._listener = _listen(addresses[0], port)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def wait_for_all(self, timeout):
        """Returns when the launchers of all nodes are there; raises RunError, naming who is not, after `timeout` s."""
        deadline = time.monotonic() + timeout
        if self._rank != 0:
            self._connect(deadline, timeout)
            self._peers[0].send({"node": self._rank, "flags": self._flags})
            # From here on the master decides: it says who is missing when its time is up.
            while not self._peers[0].started:
                self.check(wait=0.2)
            return
        while len(self._peers) < len(self._addresses) - 1:
            self.check(wait=0.2)
            if time.monotonic() > deadline:
                missing = [
                    address for rank, address in enumerate(self._addresses) if rank > 0 and rank not in self._peers
                ]
                raise RunError(
                    f"after {timeout} seconds, still missing: {', '.join(missing)}; start the same command "
                    f"there, from where port {self._port} of {self._addresses[0]} can be reached"
                )
        self._send_to_all({"start": True})

    def _connect(self, deadline, timeout):
        while True:
            try:
                connection = socket.create_connection((self._addresses[0], self._port), timeout=2)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"after {timeout} seconds, the master node {self._addresses[0]} does not answer at port "
                        f"{self._port} ({error.strerror or 'no reply'})"
                    ) from None
                time.sleep(0.2)
            else:
                self._peers[0] = self._add_peer(connection, 0)
                return

    def _add_peer(self, connection, rank):
        connection.setblocking(False)
        peer = _Peer(connection, rank, "" if rank is None else self._addresses[rank])
        self._selector.register(connection, selectors.EVENT_READ, peer)
        return peer

    def check(self, wait=0.0):
        """Raises UserError, RunError or Signalled if another node tells to stop or is lost. Keeps the line alive.

        Waits up to `wait` seconds for a message.
        """
        now = time.monotonic()
        if now - self._last_heartbeat > HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self._send_to_all({"alive": True})
        for key, _ in self._selector.select(wait):
            if key.fileobj is self._listener:
                # Who has knocked may be gone by now, which is no reason to stop a run.
                with contextlib.suppress(OSError):
                    self._add_peer(self._listener.accept()[0], None)
            else:
                self._receive(key.data)
        for peer in self._peers.values():
            if not peer.done and time.monotonic() - peer.heard > SILENCE_SECONDS:
                raise RunError(f"node {peer.address} has not been heard of for {SILENCE_SECONDS} seconds")

    def _receive(self, peer):
        try:
            messages = peer.receive()
        except (OSError, ValueError, RecursionError):
            messages = None
        if messages is None:
            self._drop(peer)
            if peer.rank is not None and not peer.done:
                raise RunError(f"node {peer.address} has closed the connection")
            return  # a stranger, or a node that has finished
        for message in messages:
            if peer.rank is None and not self._admit(peer, message):
                return
            peer.started = peer.started or bool(message.get("start"))
            peer.done = peer.done or bool(message.get("done"))
            if message.get("stop"):
                number = message.get("signal")
                if type(number) is int and number in signals.SIGNALS:  # True and 2.0 equal a number, too
                    raise signals.Signalled(number, str(message["stop"]))
                raise (UserError if message.get("bad_input") else RunError)(str(message["stop"]))

    def _admit(self, peer, message):
        """Takes a new connection for the node that it says it is, or drops it; raises UserError if its flags differ."""
        rank, flags = message.get("node"), message.get("flags")
        if not isinstance(rank, int) or not 0 < rank < len(self._addresses) or not isinstance(flags, dict):
            self._drop(peer)
            return False
        if rank in self._peers:
            peer.send({"stop": f"node {self._addresses[rank]} has been started twice", "bad_input": True})
            self._drop(peer)
            return False
        peer.rank, peer.address = rank, self._addresses[rank]
        self._peers[rank] = peer
        for name in sorted(self._flags.keys() | flags.keys()):
            if flags.get(name) != self._flags.get(name):
                raise UserError(
                    f"node {peer.address} has {name} = {flags.get(name)}, but node {self._addresses[0]} has "
                    f"{self._flags.get(name)}; give all nodes the same command line"
                )
        return True

    def _drop(self, peer):
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def all_done(self):
        """Whether every other node this one knows of has finished."""
        return all(peer.done for peer in self._peers.values())

    def say_done(self):
        """Tells that the ranks of this node have finished."""
        self._send_to_all({"done": True})

    def say_stop(self, reason, bad_input=False, number=0):
        """Tells the other nodes to stop, and why: for bad input, at the signal `number`, or as something has failed."""
        self._send_to_all({"stop": reason, "bad_input": bad_input, "signal": number})

    def _send_to_all(self, message):
        for peer in self._peers.values():
            peer.send(message)


class _Peer:
    """One connection to another launcher."""

    def __init__(self, connection, rank, address):
        self.connection = connection
        self.rank = rank
        self.address = address
        self.heard = time.monotonic()
        self.started = False
        self.done = False
        self._buffer = b""

    def send(self, message):
        """Sends, or not: a message that cannot be sent goes to a node that is lost, which its silence will show."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self):
        """The messages that have come, or None if the other side is gone. Raises ValueError for what is none."""
        data = self.connection.recv(_LONGEST_MESSAGE)
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_MESSAGE:
            raise ValueError("too long for a message")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages
