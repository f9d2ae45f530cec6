"""A page and a JSON interface on localhost for answers to questions; see docs/use.md.

The web server runs in a thread of its own. The main thread calls the model and receives signals.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import queue
import socket
import threading
from typing import NamedTuple

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from html_page import make_page
from inference import batches
from ranks.ranks import has_launcher
from system import signals
from system.errors import RunError, UserError, one_line
from system.progress import print_line, print_warning

_ADDRESS = "127.0.0.1"
# Questions that are answered together.
_MOST_TOGETHER = 32
# How often the main thread looks whether a signal has come: one that arrives just before a wait would not end it.
_MOMENT_SECONDS = 0.2
# A client that is slower to send a request is refused. It could otherwise delay the end for ever.
_SECONDS_TO_SEND = 10
_HEADERS_OF_PAGE = {"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class Waiting(NamedTuple):
    """A question that waits for its answer."""

    question: str
    context: str
    answer: concurrent.futures.Future


class Limits(NamedTuple):
    """The questions that may wait at a time, and the bytes of a request."""

    questions: int
    request_bytes: int


def bind(port):
    """Returns a socket bound to the port of localhost, or to a free one if `port` is 0.

    Raises UserError if that is impossible.
    """
    bound = socket.socket()
    # The connections of an earlier server may not have ended for the kernel.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((_ADDRESS, port))
    except OSError as error:
        bound.close()
        raise UserError(f"--serve={port}: {error.strerror}; give another port, or 0 for a free one") from None
    return bound


def serve(bound, answer_all, context, limits):
    """Answers the requests at the socket `bound` until a signal, and those that have come; raises Signalled then.

    `answer_all` takes a list of (question, context) and returns for each an object for JSON, or the UserError or
    RunError to report. `context`: that of all questions, or None if each request has its own. `limits`: Limits. Raises
    RunError if the web server breaks down.
    """
    waiting: queue.Queue[Waiting] = queue.Queue(limits.questions)
    server = uvicorn.Server(
        uvicorn.Config(
            make_application(waiting, context, limits),
            http="h11",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
        )
    )
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    with signals.recorded(second_kills=not has_launcher()) as received:
        bound.listen(limits.questions)
        host, port = bound.getsockname()
        thread.start()
        print_line(f"Serving on http://{host}:{port}/ until Ctrl-C")
        while thread.is_alive():
            server.should_exit = bool(received)
            answer_waiting(waiting, answer_all)
    if not received:
        raise RunError("the web server has ended by itself")
    raise signals.Signalled(received[0])


def answer_waiting(waiting, answer_all):
    """Answers what waits in the queue, some questions together; waits for a moment if nothing does."""
    try:
        together = [waiting.get(timeout=_MOMENT_SECONDS)]
    except queue.Empty:
        return
    with contextlib.suppress(queue.Empty):
        while len(together) < _MOST_TOGETHER:
            together.append(waiting.get_nowait())
    try:
        results = answer_all([(one.question, one.context) for one in together])
    except Exception as error:
        # No request may end the server.
        print_warning(f"{type(error).__name__}: {error}")
        results = [RunError("the model failed; the server's terminal has the reason")] * len(together)
    for one, result in zip(together, results, strict=True):
        if isinstance(result, Exception):
            one.answer.set_exception(result)
        else:
            one.answer.set_result(result)


def make_application(waiting, context, limits):
    """Returns the ASGI application that puts questions into the queue `waiting`; the rest is as for serve()."""
    page = make_page("ask_page.html", ["elements.js", "ask_page.js"], {"context": context}, connect="'self'")

    async def show_page(request):
        return HTMLResponse(page, headers=_HEADERS_OF_PAGE)

    async def answer(request):
        asked = await _read_question(request, context, limits)
        try:
            waiting.put_nowait(asked)
        except queue.Full:
            text = f"{limits.questions} questions wait already; ask again later"
            raise HTTPException(503, text, headers={"Retry-After": "1"}) from None
        try:
            return JSONResponse(await asyncio.wrap_future(asked.answer))
        except UserError as error:
            raise HTTPException(400, one_line(error)) from None
        except RunError as error:
            raise HTTPException(500, one_line(error)) from None

    async def report(request, error):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    return Starlette(
        routes=[Route("/", show_page), Route("/answer", answer, methods=["POST"])],
        # Another name may be that of a web site which its owner has led to this address.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["localhost", _ADDRESS], www_redirect=False)],
        exception_handlers={HTTPException: report},
    )


async def _read_question(request, context, limits):
    """The Waiting question of a request. Raises HTTPException if the request has a fault."""
    # A form on another web site cannot send this type.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the Content-Type is not application/json")
    try:
        body = await asyncio.wait_for(_read_body(request, limits.request_bytes), _SECONDS_TO_SEND)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the request was not complete after {_SECONDS_TO_SEND} seconds") from None
    try:
        content = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise HTTPException(400, "the request is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, one_line(f"the request is no JSON: {error}")) from None
    wanted = ["question"] if context is not None else ["question", "context"]
    if not isinstance(content, dict) or sorted(content) != sorted(wanted):
        names = " and ".join(f'"{name}"' for name in wanted)
        raise HTTPException(400, f"the request is not a JSON object with {names} alone")
    for name, text in content.items():
        if not isinstance(text, str):
            raise HTTPException(400, f"{name}: is not a string")
        try:
            batches.check_is_text(text, name)
        except UserError as error:
            raise HTTPException(400, one_line(error)) from None
    return Waiting(content["question"], content.get("context", context), concurrent.futures.Future())


async def _read_body(request, most):
    """The bytes of a request. Raises HTTPException if they are more than `most`."""
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise HTTPException(413, f"the request has more than {most} bytes; see --max_request_bytes")
    except ClientDisconnect:
        raise HTTPException(400, "the request was not complete") from None
    return bytes(body)
