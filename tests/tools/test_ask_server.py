"""tools/ask.py --serve: each request gets the answer that tools/ask.py gives, whatever other clients do."""

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from unittest import mock

import pytest

import answer_server
import ask
import small_models
from browsers import browse_url, needs_browser
from inference import answers
from running import ROOT
from system.errors import UserError
from system.signals import Signalled
from text import squad_file

JSON = {"Content-Type": "application/json"}
FLAGS = {"max_query_length": 40, "n_best": 2}
CONTEXT = "\U0001f3e0 </script><b>The old lighthouse</b>\u00a0was  built in 1850\nby Zo\u00eb Verne."


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return small_models.write_squad_snapshot(tmp_path_factory.mktemp("model") / "of")


@pytest.fixture(scope="module")
def server(snapshot):
    """(process, port) of a server whose requests have contexts of their own."""
    command = [sys.executable, ROOT / "tools/ask.py", f"--model_load_dir={snapshot}", "--serve=0"]
    command += [f"--{name}={value}" for name, value in {**FLAGS, "max_request_bytes": 10000}.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.startswith("Serving on http://127.0.0.1:"), process.stderr.read()
        yield process, int(line.split(":")[2].split("/")[0])
        process.kill()


@pytest.fixture(scope="module")
def cases():
    """All (question, context) of dataset/squad."""
    pairs = []
    for name in ("train", "dev"):
        _, paragraphs = squad_file.read_paragraphs(ROOT / f"dataset/squad/{name}-v1.1.json")
        pairs += [(question.text, paragraph.context) for paragraph in paragraphs for question in paragraph.questions]
    assert len(pairs) == 65
    return pairs


@pytest.fixture(scope="module")
def make_answerer(snapshot, tmp_path_factory):
    """Makes an Answerer of a batch size, in this process, as tools/ask.py does; with what as_json needs."""
    command = [f"--{name}={value}" for name, value in FLAGS.items()]
    with mock.patch.object(
        sys, "argv", ["ask.py", f"--model_load_dir={snapshot}", "--question=x", "--context=x", *command]
    ):
        arguments = ask.parse_arguments()
    model = answers.read_model(arguments)
    model.run.log_dir = str(tmp_path_factory.mktemp("log"))
    return lambda batch_size: (answers.Answerer(model, arguments, batch_size), model, arguments)


@pytest.fixture(scope="module")
def alone(make_answerer, cases):
    """The object of each case when it is asked alone."""
    answerer, _, arguments = make_answerer(1)
    return [ask.as_json(question, answerer.answer(question, context), arguments) for question, context in cases]


def close_to(wanted):
    """What an object equals whose probabilities are those of `wanted` but for rounding."""
    n_best = [entry | {"probability": pytest.approx(entry["probability"], rel=1e-4)} for entry in wanted["n_best"]]
    return wanted | {"probability": pytest.approx(wanted["probability"], rel=1e-4), "n_best": n_best}


def send(port, body, headers=JSON, method="POST", path="/answer"):
    """(status, object or text) of one request; `body` may be an object for JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read().decode()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(content) if is_json else content
    finally:
        connection.close()


@pytest.mark.engine
def test_questions_together_have_the_answers_they_have_alone(make_answerer, cases, alone):
    answerer, model, arguments = make_answerer(8)
    pairs = [*cases, ("\u200b", "text"), ("who " * 41, "text"), ("Who?", "\u200b")]
    found = ask.objects_for(answerer, model, arguments, pairs)
    assert found[:65] == [close_to(wanted) for wanted in alone]
    assert all(isinstance(fault, UserError) for fault in found[65:])
    assert "question: has 41 pieces; the server takes at most 40" in str(found[66])


def test_windows_are_computed_in_batches():
    lengths = [32] * 9 + [64] * 7 + [128]
    found = answers._batches(lengths, 8)
    assert sorted(len(rows) for _, rows in found) == [1, 1, 8, 8]
    assert all(lengths[row] == length for length, rows in found for row in rows)
    assert {row for _, rows in found for row in rows} == set(range(17))


@pytest.mark.engine
def test_200_clients_at_once_get_their_own_answers(server, cases, alone):
    _, port = server
    start = threading.Barrier(200)

    def client(number):
        question, context = cases[number % len(cases)]
        start.wait(60)
        return send(port, {"question": question, "context": context})

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        found = list(pool.map(client, range(200)))
    for number, (status, content) in enumerate(found):
        assert status == 200, content
        assert content == close_to(alone[number % len(cases)])


def test_a_faulty_request_gets_one_line_and_harms_no_other(server):
    _, port = server
    good = {"question": "When was it built?", "context": CONTEXT}
    for body, status, fragment in [
        (b"{", 400, "the request is no JSON"),
        (b"[" * 9000, 400, "the request is no JSON"),
        (b'{"question": "\xff"}', 400, "the request is not UTF-8"),
        ([good], 400, 'not a JSON object with "question" and "context" alone'),
        ({"question": "When?"}, 400, 'not a JSON object with "question" and "context" alone'),
        ({**good, "n_best": 1}, 400, 'not a JSON object with "question" and "context" alone'),
        ({**good, "question": 1}, 400, "question: is not a string"),
        ({**good, "question": " "}, 400, "question: is empty; give a text"),
        ({**good, "context": ""}, 400, "context: is empty; give a text"),
        ({**good, "context": "\ud800"}, 400, "context: is not UTF-8"),
        ({**good, "context": "\u200b"}, 400, "the context has no visible character"),
        ({**good, "question": "who " * 41}, 400, "question: has 41 pieces"),
        ({**good, "context": "a" * 10000}, 413, "the request has more than 10000 bytes"),
    ]:
        found, content = send(port, body)
        assert (found, list(content)) == (status, ["error"]), (body, content)
        assert fragment in content["error"] and "\n" not in content["error"]
    assert send(port, good, {"Content-Type": "text/plain"})[0] == 415
    assert send(port, good, {**JSON, "Host": "a.example"})[0] == 400
    assert send(port, b"", method="GET")[0] == 405
    assert send(port, b"", method="GET", path="/none") == (404, {"error": "Not Found"})
    # Clients that leave.
    for part in (
        b"",
        b"POST /answer",
        b"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        b"\0\n\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(part)
    status, content = send(port, good, {**JSON, "Host": "localhost:1"})
    assert status == 200 and CONTEXT[content["begin"] : content["end"]].split() == content["answer"].split()


@needs_browser
def test_the_page_marks_the_answer(server, tmp_path):
    _, port = server
    asked = {"question": "When was it built?", "context": CONTEXT}
    _, wanted = send(port, asked)
    page = browse_url(f"http://localhost:{port}/#{urllib.parse.urlencode(asked)}", tmp_path)
    assert page.texts("h2") == [wanted["answer"]]
    assert page.texts("div", class_="context") == [CONTEXT]
    assert page.texts("mark") == [CONTEXT[wanted["begin"] : wanted["end"]]]
    assert page.texts("button", aria_pressed="true") == [wanted["answer"]]
    assert len(page.texts("button")) == 3 and page.count("b") == 0


@pytest.mark.engine
def test_sigterm_ends_the_server_after_its_requests(server, cases, alone):
    """The last test of this server."""
    process, port = server

    def client(number):
        question, context = cases[number]
        try:
            return send(port, {"question": question, "context": context})
        except OSError:
            return None  # it came too late

    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        clients = [pool.submit(client, number) for number in range(len(cases))]
        next(concurrent.futures.as_completed(clients))
        process.send_signal(signal.SIGTERM)
        found = [one.result() for one in clients]
    assert all(one is None or one == (200, close_to(wanted)) for one, wanted in zip(found, alone, strict=True))
    assert any(found)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert process.stderr.read().splitlines()[-1] == "ask.py: error: ended by SIGTERM"


def serve_for(client, answer_all, context=None, most_waiting=100, stops=True):
    """What client(port) returns, in a thread, while this thread serves with a stand-in for the model.

    `stops`: the server gets SIGTERM when the client has returned.
    """
    bound = answer_server.bind(0)
    serves = threading.Event()

    def run_client():
        assert serves.wait(60)
        return client(bound.getsockname()[1])

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        returned = pool.submit(run_client)
        if stops:
            returned.add_done_callback(lambda _: os.kill(os.getpid(), signal.SIGTERM))
        with (
            mock.patch.object(answer_server, "print_line", lambda line: serves.set()),
            pytest.raises(Signalled, match="ended by SIGTERM"),
        ):
            answer_server.serve(bound, answer_all, context, answer_server.Limits(most_waiting, 1000))
        return returned.result()


def echo(pairs):
    """Stands in for the model."""
    return [{"question": question, "context": context} for question, context in pairs]


def test_more_questions_than_may_wait_are_refused():
    refused = threading.Event()

    def answer_all(pairs):
        assert refused.wait(60)
        return echo(pairs)

    def client(port):
        def ask_one(number):
            status, content = send(port, {"question": f"{number}", "context": "text"})
            if status != 200:
                refused.set()
            return status, content

        # More than the questions that are answered together, and those that may wait.
        with concurrent.futures.ThreadPoolExecutor(50) as pool:
            return list(pool.map(ask_one, range(50)))

    found = serve_for(client, answer_all, most_waiting=2)
    answered = [number for number, (status, _) in enumerate(found) if status == 200]
    assert 0 < len(answered) < 50
    for number, (status, content) in enumerate(found):
        if number in answered:
            assert content == {"question": f"{number}", "context": "text"}
        else:
            assert (status, content) == (503, {"error": "2 questions wait already; ask again later"})


def test_a_signal_lets_the_request_under_way_finish():
    def answer_all(pairs):
        os.kill(os.getpid(), signal.SIGTERM)
        return echo(pairs)

    asked = {"question": "Who?", "context": "text"}
    assert serve_for(lambda port: send(port, asked), answer_all, stops=False) == (200, asked)


def test_a_failure_of_the_model_does_not_end_the_server(capsys):
    def answer_all(pairs):
        if pairs[0][0] == "bad":
            raise ValueError("no such thing")
        return echo(pairs)

    def client(port):
        return [send(port, {"question": question}) for question in ("bad", "good")]

    found = serve_for(client, answer_all, context="fixed")
    assert found[0] == (500, {"error": "the model failed; the server's terminal has the reason"})
    assert found[1] == (200, {"question": "good", "context": "fixed"})
    assert "warning: ValueError: no such thing" in capsys.readouterr().err


@needs_browser
def test_the_page_of_a_fixed_context_reports_an_error(tmp_path):
    def answer_all(pairs):
        return [UserError(f"no {question} in {context}") for question, context in pairs]

    page = serve_for(lambda port: browse_url(f"http://127.0.0.1:{port}/#question=x", tmp_path), answer_all, "<text>")
    assert page.texts("p", role="alert") == ["no x in <text>"]
    assert page.count("textarea") == 0


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="Address already in use; give another port, or 0 for a free one"):
            answer_server.bind(taken.getsockname()[1])
