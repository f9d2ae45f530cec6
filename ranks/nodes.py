"""The connections between the nodes of a run: all start together, and all stop when one fails.

Each node has one launcher process (ranks/launcher.py). The launchers of nodes 1, 2, ... connect to the launcher of node
0, the master, at --master_port; OneFlow's own rendezvous uses the next port. A message is a JSON object on one line:
{"node": 1, "flags": {...}} introduces a node; {"start": true} comes from the master once all nodes are connected;
{"alive": true} is the heartbeat; {"done": true} says that the ranks of a node have finished; {"stop": "why",
"bad_input": false, "signal": 0} reports a failure or a signal, and the master forwards it.

With a shared secret (ranks/cluster_secret.py) both sides prove that they know it first. A node sends {"node": 1,
"challenge": "..."}, the master answers {"challenge": "...", "proof": "..."}, and the node sends {"proof": "...",
"flags": {...}}. The master sends a stop to a node that it refuses.
"""

import contextlib
import errno
import json
import selectors
import socket
import time

from ranks import cluster_secret
from ranks.ranks import connect
from system import signals
from system.errors import RunError, UserError

HEARTBEAT_SECONDS = 2
# A node is lost after this much silence: its machine or its link is down.
SILENCE_SECONDS = 15
_LONGEST_MESSAGE = 65536
# A connection must say within this time which node it is. The master keeps at most MOST_STRANGERS that have not.
STRANGER_SECONDS = 5
MOST_STRANGERS = 64
# A message that takes longer goes to a node that has stopped reading.
_SEND_SECONDS = 2


def find_node_rank(node_list, node_num, node_rank):
    """Returns (addresses of the nodes, index of this machine among them) from --node_list, --node_num and --node_rank.

    Only the first `node_num` names of the list are used. Raises UserError if the list is too short, names a node twice,
    or does not name this machine exactly once.
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
        # Debian's /etc/hosts maps the machine's own name to a loopback address.
        raise UserError(
            f"--node_list: {name} is {address} on this machine, where no other node finds it; "
            "give its address in the network, or correct /etc/hosts"
        )
    return address


def _is_own(address):
    """Returns whether the address belongs to this machine: a socket can be bound to no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def held_port(address, port):
    """Reserves a port on all addresses of this machine for rank 0 within the block; yields its number.

    Port 0 means any free port. Raises UserError, naming `address`, if the port is in use.
    """
    if port:
        _listen(address, port).close()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        # OneFlow's rendezvous uses gRPC, which sets SO_REUSEPORT too, and so can listen on the reserved port. Only a
        # listening socket gets connections, and this one does not listen.
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
    """Turns an OSError of bind or listen within the block into a UserError with advice."""
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


class Connections:
    """The connections of this node: those of the master go to all other nodes, those of another node to the master.

    A run on one node has none. `flags` (name -> value) and `secret` (bytes or None) must be equal on all nodes.
    """

    def __init__(self, addresses, node_rank, port, flags, secret=None):
        self._addresses = addresses
        self._rank = node_rank
        self._port = port
        self._flags = flags
        self._secret = secret
        self._peers = {}  # node rank -> _Peer
        self._strangers = []  # _Peers that have not introduced themselves to this master, oldest first
        self._refused = {}  # node rank -> why a peer that claimed this rank was refused
        self._selector = selectors.DefaultSelector()
        self._last_heartbeat = 0.0
        # The master listens only on the address that the other nodes connect to.
        self._listener = None
        if node_rank == 0 and len(addresses) > 1:
            self._listener = _listen(addresses[0], port)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def wait_for_all(self, timeout):
        """Returns when all nodes are connected; after `timeout` seconds raises RunError naming the missing ones."""
        deadline = time.monotonic() + timeout
        if self._rank != 0:
            problem = f"the master node {self._addresses[0]} does not answer at port {self._port}"
            self._peers[0] = self._add_peer(connect(self._addresses[0], self._port, timeout, problem), 0)
            self._introduce(self._peers[0])
            # From here on the master watches the time and names the missing nodes.
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

    def _add_peer(self, connection, rank):
        connection.setblocking(False)
        peer = _Peer(connection, rank, "" if rank is None else self._addresses[rank])
        self._selector.register(connection, selectors.EVENT_READ, peer)
        return peer

    def check(self, wait=0.0):
        """Handles messages, for which it waits up to `wait` seconds, and sends heartbeats.

        Raises UserError, RunError or Signalled if another node sends a stop or is lost.
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
        """Accepts waiting connections, at most as many as are kept."""
        # A client may have disconnected meanwhile; the run goes on.
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
            return  # a stranger, or a finished node
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
                if type(number) is int and number in signals.SIGNALS:  # True == 1 and 2.0 == 2 are refused
                    raise signals.Signalled(number, str(message["stop"]))
                raise (UserError if message.get("bad_input") else RunError)(str(message["stop"]))

    def _introduce(self, master):
        """Sends this node's rank to the master, with its flags or, if there is a secret, a challenge."""
        if self._secret is None:
            master.send({"node": self._rank, "flags": self._flags})
            return
        master.is_trusted = False
        master.own_challenge = cluster_secret.draw_challenge()
        master.send({"node": self._rank, "challenge": master.own_challenge})

    def _answer_master(self, master, message):
        """Sends the proof that this node knows the secret. Raises UserError if the master's own proof is wrong."""
        challenge = message.get("challenge")
        challenges = (master.own_challenge, str(challenge))
        if not cluster_secret.is_proof(message.get("proof"), self._secret, 0, *challenges):
            raise UserError(_describe_secrets("the master", master.address, "another secret than this node"))
        master.is_trusted = True
        master.send({"proof": cluster_secret.prove(self._secret, self._rank, *challenges), "flags": self._flags})

    def _meet(self, peer, message):
        """Handles a message of a stranger: its introduction or its proof that it knows the secret."""
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
        if type(rank) is not int or not 0 < rank < len(self._addresses):  # True == 1 is refused
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
        """Makes a stranger the node that it claims to be. Raises UserError if its flags differ from the master's."""
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
        """Dismisses a peer with the wrong secret. The run keeps waiting, since the peer may be anyone."""
        reason = _describe_secrets("node", self._addresses[peer.claimed], what)
        if self._refused.get(peer.claimed) != reason:
            self._refused[peer.claimed] = reason
            print(f"Notice: {reason}.", flush=True)
        self._dismiss(peer, reason)

    def _dismiss(self, peer, reason=""):
        """Tells a stranger why it is refused. The connection stays half open until the stranger has read that."""
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
        """Returns whether the ranks of all connected nodes have finished."""
        return all(peer.done for peer in self._peers.values())

    def send_done(self):
        """Tells the other nodes that the ranks of this node have finished."""
        self._send_to_all({"done": True})

    def send_stop(self, reason, bad_input=False, number=0):
        """Tells the other nodes to stop for `reason`: bad input, the signal `number`, or else a failure."""
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
    """A connection to another launcher."""

    def __init__(self, connection, rank, address):
        self.connection = connection
        self.rank = rank
        self.address = address
        self.since = self.heard = time.monotonic()
        self.started = False
        self.done = False
        self.is_trusted = True  # False for a master that has yet to prove that it knows the secret
        self.is_dismissed = False
        self.claimed = None  # the rank in a stranger's introduction
        self.challenge = self.own_challenge = None  # of the other side, of this side
        self._buffer = b""

    def send(self, message):
        """Sends the whole message, or shuts the connection down so that both sides notice."""
        try:
            self.connection.settimeout(_SEND_SECONDS)
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.setblocking(False)
        except OSError:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def receive(self):
        """Returns the messages received, or None if the connection is closed. Raises ValueError for invalid data."""
        data = self.connection.recv(_LONGEST_MESSAGE)
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST_MESSAGE:
            raise ValueError("message too long")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) for message in messages):
            raise ValueError("not a message")
        return messages
