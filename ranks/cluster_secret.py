"""The secret that the launchers of a run share, if they are given one: each proves to the other that it knows it.

A proof is an HMAC-SHA256, with the secret as its key, over what both sides have just drawn at random. The secret itself
is never sent. Only the launchers' connections are protected so, and only against who does not know the secret: nothing
is encrypted, and OneFlow's own connections have no such thing.
"""

import hmac
import os
import secrets
import stat

from system.errors import UserError
from system.input_files import open_input, reading

VARIABLE = "BERT_CLUSTER_SECRET"
FILE_VARIABLE = "BERT_CLUSTER_SECRET_FILE"
_LONGEST = 65536  # characters


def read():
    """The secret in the environment, or in the file that it names, as bytes; None if there is none.

    Raises UserError if both are given, if the secret is empty, and if others may read the file.
    """
    given, path = os.environ.get(VARIABLE), os.environ.get(FILE_VARIABLE)
    if given is not None and path is not None:
        raise UserError(f"{VARIABLE} and {FILE_VARIABLE} are both in the environment; give one of them")
    if given is None and path is None:
        return None
    source = VARIABLE if path is None else f"{FILE_VARIABLE}={path}"
    secret = given if path is None else _read_file(path, source)
    if not secret.strip():
        raise UserError(f"{source}: the secret is empty; make one with openssl rand -hex 32")
    return secret.strip().encode(errors="surrogateescape")


def _read_file(path, source):
    with reading(source), open_input(path, encoding="utf-8", errors="surrogateescape") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            raise UserError(f"{source}: others than its owner have access to the file; chmod 600 it")
        return file.read(_LONGEST)


def draw_challenge():
    """What the other side's proof is to be of: 32 hexadecimal digits, never the same."""
    return secrets.token_hex(16)


def prove(secret, prover, *challenges):
    """The proof of node `prover` that it knows the secret, for the challenges of both sides, as hexadecimal digits."""
    return hmac.new(secret, "\n".join([str(prover), *challenges]).encode(), "sha256").hexdigest()


def is_proof(given, *arguments):
    """Whether what the other side has sent is what `prove` makes of the arguments."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), prove(*arguments).encode())
