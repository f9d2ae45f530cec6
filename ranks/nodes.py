"""The nodes of a run and the line between them: who begins when all are there, and who ends when one has failed.

Each node has one launcher process (ranks/launcher.py). The launchers of nodes 1, 2, ... connect to that of node 0, the
master, at --master_port; OneFlow's own rendezvous takes the port above it. Every message is a JSON object on a line:
{"node": 1, "flags": {...}} at first; {"start": true} from the master once all are there; {"alive": true} every few
seconds; {"done": true} when a node's ranks have finished; {"stop": "why", "bad_input": false, "signal": 0} from
whoever has failed or was sent a signal, passed on to all.

With a secret (ranks/cluster_secret.py) both sides prove that they know it before anything else of theirs counts. A node
begins with {"node": 1, "challenge": "..."}, the master answers {"challenge": "...", "proof": "..."}, and the node
{"proof": "...", "flags": {...}}. The master sends a stop to whoever does not fit.
"""

import contextlib
import errno
import json
import selectors
import socket
import time

from ranks import cluster_secret
from system import signals
from system.errors import RunError, UserError

HEARTBEAT_SECONDS = 2
# A node that is not heard of for so long is lost: its machine or the link is down.
SILENCE_SECONDS = 15
_LONGEST_MESSAGE = 65536
# Whoever connects to the master has so long to say which node it is; of those who have not, so many are kept.
STRANGER_SECONDS = 5
MOST_STRANGERS = 64
# For a message; one that takes longer goes to a node that does not read.
_SEND_SECONDS = 2


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


@contextlib.contextmanager
def held_port(address, port):
    """A port at all addresses of this machine, kept for rank 0 to listen at until the block ends; gives its number.

    `port` may be 0, for any that is free. Raises UserError, which names `address`, if it is in use.
    """
    if port:
        _listen(address, port).close()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        # gRPC, by which OneFlow's ranks meet, sets it as well, and may therefore listen at a port that is held so. What
        # connects goes to who listens, which the holder does not.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _naming_port(address, port):
            holder.bind(("", port))
        yield holder.getsockname()[1]


def _listen(address, port):
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _naming_port(address, port):
            listener.bind((address, port))
            listener.listen()
    except UserError:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _naming_port(address, port):
    """Raises UserError, with what to do, where the block cannot take the port."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {address} is in use; choose another with --master_port") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"--node_rank=0 is for {address}, which is not an address of this machine") from None
        raise UserError(
            f"port {port} of {address} cannot be listened at ({error.strerror}); choose another with --master_port"
        ) from None


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

    `flags` (name -> value) are those that must be the same on all nodes; so must the `secret` (bytes, or None).
    """

    def __init__(self, addresses, node_rank, port, flags, secret=None):
        self._addresses = addresses
        self._rank = node_rank
        self._port = port
        self._flags = flags
        self._secret = secret
        self._peers = {}  # node rank -> _Peer
        self._strangers = []  # of the master: the _Peers that may become nodes, in the order in which they came
        self._refused = {}  # node rank -> what was wrong with who said it was that node
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
            self._introduce(self._peers[0])
            # From here on the master decides: it says who is missing when its time is up.
            while not self._peers[0].started:
                self.check(wait=0.2)
            return
        while len(self._peers) < len(self._addresses) - 1:
            self.check(wait=0.2)
            if time.monotonic() > deadline:
                missing = [rank for rank in range(1, len(self._addresses)) if rank not in self._peers]
                refused = "".join(f" ({self._refused[rank]})" for rank in missing if rank in self._refused)
                raise RunError(
                    f"after {timeout} seconds, still missing: {', '.join(self._addresses[rank] for rank in missing)}"
                    f"{refused}; start the same command there, from where port {self._port} of {self._addresses[0]} "
                    "can be reached"
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
                self._accept()
            else:
                self._receive(key.data)
        too_many = self._strangers[: max(0, len(self._strangers) - MOST_STRANGERS)]
        too_slow = [peer for peer in self._strangers if time.monotonic() - peer.since > STRANGER_SECONDS]
        for peer in {*too_many, *too_slow}:
            self._drop(peer)
        for peer in self._peers.values():
            if not peer.done and time.monotonic() - peer.heard > SILENCE_SECONDS:
                raise RunError(f"node {peer.address} has not been heard of for {SILENCE_SECONDS} seconds")

    def _accept(self):
        """Takes the connections that have come, but no more at a time than are kept."""
        # Who has knocked may be gone by now, which is no reason to stop a run.
        with contextlib.suppress(OSError):
            for _ in range(MOST_STRANGERS):
                self._strangers.append(self._add_peer(self._listener.accept()[0], None))

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
            if peer in self._strangers:
                self._meet(peer, message)
                continue
            if not peer.is_trusted and not message.get("stop"):
                self._answer_master(peer, message)
                continue
            peer.started = peer.started or bool(message.get("start"))
            peer.done = peer.done or bool(message.get("done"))
            if message.get("stop"):
                number = message.get("signal")
                if type(number) is int and number in signals.SIGNALS:  # True and 2.0 equal a number, too
                    raise signals.Signalled(number, str(message["stop"]))
                raise (UserError if message.get("bad_input") else RunError)(str(message["stop"]))

    def _introduce(self, master):
        """Says to the master which node this is, and proves it later if there is a secret."""
        if self._secret is None:
            master.send({"node": self._rank, "flags": self._flags})
            return
        master.is_trusted = False
        master.own_challenge = cluster_secret.draw_challenge()
        master.send({"node": self._rank, "challenge": master.own_challenge})

    def _answer_master(self, master, message):
        """Proves to the master that this node knows the secret. Raises UserError if the master has not done so."""
        challenge = message.get("challenge")
        challenges = (master.own_challenge, str(challenge))
        if not cluster_secret.is_proof(message.get("proof"), self._secret, 0, *challenges):
            raise UserError(_describe_secrets("the master", master.address, "another secret than this node"))
        master.is_trusted = True
        master.send({"proof": cluster_secret.prove(self._secret, self._rank, *challenges), "flags": self._flags})

    def _meet(self, peer, message):
        """Hears what a stranger says: which node it is and, if there is a secret, the proof that it knows it."""
        if peer.is_dismissed:
            return
        if peer.own_challenge is not None:
            challenges = (peer.challenge, peer.own_challenge)
            if not cluster_secret.is_proof(message.get("proof"), self._secret, peer.claimed, *challenges):
                self._refuse(peer, "another secret than the master")
            else:
                self._admit(peer, message.get("flags"))
            return
        rank, challenge = message.get("node"), message.get("challenge")
        if type(rank) is not int or not 0 < rank < len(self._addresses):  # True equals a number, too
            self._dismiss(peer)
            return
        peer.claimed = rank
        if self._secret is None and challenge is None:
            self._admit(peer, message.get("flags"))
        elif self._secret is None:
            self._refuse(peer, "a secret, but the master none")
        elif challenge is None:
            self._refuse(peer, "no secret, but the master one")
        else:
            peer.challenge, peer.own_challenge = str(challenge), cluster_secret.draw_challenge()
            proof = cluster_secret.prove(self._secret, 0, peer.challenge, peer.own_challenge)
            peer.send({"challenge": peer.own_challenge, "proof": proof})

    def _admit(self, peer, flags):
        """Takes a stranger for the node that it claims to be, or not; raises UserError if its flags differ."""
        address = self._addresses[peer.claimed]
        if not isinstance(flags, dict):
            self._dismiss(peer)
            return
        if peer.claimed in self._peers:
            self._dismiss(peer, f"node {address} has been started twice")
            return
        self._strangers.remove(peer)
        peer.rank, peer.address = peer.claimed, address
        self._peers[peer.rank] = peer
        for name in sorted(self._flags.keys() | flags.keys()):
            if flags.get(name) != self._flags.get(name):
                raise UserError(
                    f"node {peer.address} has {name} = {flags.get(name)}, but node {self._addresses[0]} has "
                    f"{self._flags.get(name)}; give all nodes the same command line"
                )

    def _refuse(self, peer, what):
        """Sends away who has the wrong secret. The run goes on waiting: it may be anybody."""
        reason = _describe_secrets("node", self._addresses[peer.claimed], what)
        if self._refused.get(peer.claimed) != reason:
            self._refused[peer.claimed] = reason
            print(f"Notice: {reason}.", flush=True)
        self._dismiss(peer, reason)

    def _dismiss(self, peer, reason=""):
        """Sends a stranger away, and tells it why. The connection is closed later, lest that be lost on the way."""
        if reason:
            peer.send({"stop": reason, "bad_input": True})
        with contextlib.suppress(OSError):
            peer.connection.shutdown(socket.SHUT_WR)
        peer.is_dismissed = True

    def _drop(self, peer):
        if peer in self._strangers:
            self._strangers.remove(peer)
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
            if peer.is_trusted:
                peer.send(message)


def _describe_secrets(who, address, what):
    return (
        f"{who} {address} has {what}; give all nodes the same one in {cluster_secret.VARIABLE} or "
        f"{cluster_secret.FILE_VARIABLE}, or none"
    )


class _Peer:
    """One connection to another launcher."""

    def __init__(self, connection, rank, address):
        self.connection = connection
        self.rank = rank
        self.address = address
        self.since = self.heard = time.monotonic()
        self.started = False
        self.done = False
        self.is_trusted = True  # what it says, once it is no stranger
        self.is_dismissed = False
        self.claimed = None  # the node that a stranger says it is
        self.challenge = self.own_challenge = None  # drawn by the other side, and by this one
        self._buffer = b""

    def send(self, message):
        """Sends the whole message, or ends the connection: then its other side is lost, as both will see."""
        try:
            self.connection.settimeout(_SEND_SECONDS)
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.setblocking(False)
        except OSError:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

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
