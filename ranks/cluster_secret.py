"""An optional shared secret that authenticates the launchers of a run to each other.

A proof is an HMAC-SHA256 with the secret as its key over random challenges of both sides. The secret is never sent. It
authenticates the launchers' connections only: their traffic is not encrypted, and OneFlow's own connections are neither
encrypted nor authenticated.
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
    """Returns the secret from the environment or the file it names as bytes, or None if neither is set.

    Raises UserError if both are set, the secret is empty, or other users can access the file.
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
    """Returns a random challenge, 32 hexadecimal digits."""
    return secrets.token_hex(16)


def prove(secret, prover, *challenges):
    """Returns node `prover`'s proof of the secret for the challenges of both sides, as hexadecimal digits."""
    return hmac.new(secret, "\n".join([str(prover), *challenges]).encode(), "sha256").hexdigest()


def is_proof(given, *arguments):
    """Returns whether the received value `given` equals prove(*arguments)."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), prove(*arguments).encode())
