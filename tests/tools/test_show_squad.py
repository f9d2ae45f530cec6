"""tools/show_squad.py: the page's scores, and the page as a browser shows it, with hostile texts too."""

import json
import random
import re
import shutil
import socket

import pytest

import html_page
import show_squad
from browsers import Elements, browse, data_of, needs_browser, rows
from in_process import run_in_process
from running import ROOT, assert_fails_with_one_line
from squad_pages import CONTEXT, PREDICTIONS, QUESTIONS, show, squad
from text import squad_metric

pytestmark = pytest.mark.slow

DEV_FILE = ROOT / "dataset" / "squad" / "dev-v1.1.json"
N_BEST = {
    "right": [{"text": "Rollo", "probability": 0.75}, {"text": "Charles", "probability": 0.25}],
    "wrong": [{"text": "fealty", "probability": 1.0}],
}


# ---- scores


def test_scores_are_those_of_the_official_metric(tmp_path):
    content = json.loads(DEV_FILE.read_text())
    generator = random.Random(0)
    references, predictions = {}, {}
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            words = paragraph["context"].split()
            for entry in paragraph["qas"]:
                references[entry["id"]] = [answer["text"] for answer in entry["answers"]]
                start = generator.randrange(len(words))
                choices = [references[entry["id"]][0], references[entry["id"]][0] + " x", " ".join(words[start:][:3])]
                predictions[entry["id"]] = generator.choice(choices)
    del predictions[next(iter(predictions))]
    _, page = show(tmp_path, content, predictions)
    data = data_of(page)
    ((name, scores),) = data["totals"]["groups"]
    expected = squad_metric.evaluate(references, predictions)
    assert name == "" and scores == {"questions": len(references), **expected}
    assert 0 < expected["exact_match"] < expected["f1"] < 100
    assert data["totals"]["unpredicted"] == 1
    assert sum(data["totals"][status] for status in ("right", "partly", "wrong")) == len(references)


@pytest.mark.parametrize(
    "prediction, references, expected",
    [
        ("", [], (True, 1)),
        ("the", [], (True, 1)),  # nothing is left of it
        ("Rollo", [], (False, 0)),
        ("", ["Rollo"], (False, 0)),
        ("the Rollo", ["rollo", "x"], (True, 1)),
        ("Rollo came", ["Rollo"], (False, pytest.approx(2 / 3))),
        ("", ["the", "Rollo"], (False, 0)),  # a reference of which nothing is left does not count
        ("", ["the"], (True, 1)),
    ],
)
def test_metric_of_version_2(prediction, references, expected):
    assert squad_metric.score_v2(prediction, references) == expected


def test_version_2_counts_what_has_an_answer_apart(tmp_path):
    questions = {"a": ("Who?", ["Rollo"]), "b": ("Why?", []), "c": ("When?", []), "d": ("Whom?", ["Charles"])}
    result, page = show(tmp_path, squad(CONTEXT, questions, "v2.0"), {"a": "Rollo", "b": "", "c": "Rollo", "d": ""})
    assert result.returncode == 0, result.stderr
    groups = {name: (scores["questions"], scores["exact_match"]) for name, scores in data_of(page)["totals"]["groups"]}
    assert groups == {"": (4, 50.0), "with an answer": (2, 50.0), "without": (2, 50.0)}


def test_an_error_is_the_only_line(tmp_path):
    """Also where there would be a warning, of a prediction for no question."""
    content, predictions = squad(CONTEXT, QUESTIONS), {**PREDICTIONS, "other": "x"}
    result, page = show(tmp_path, content, predictions)
    assert result.returncode == 0 and result.stderr.startswith("show_squad.py: warning: 1 of 4 predictions")
    page.unlink()
    result, page = show(tmp_path, content, predictions, [])
    assert_fails_with_one_line(result, "nbest.json: not an n-best file")
    assert not page.exists()


# ---- the page


def test_the_page_asks_for_nothing(tmp_path):
    result, page = show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", f"4 questions in {page}\n")
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|\bimport\b|fetch\(|XMLHttp|WebSocket|innerHTML", text)
    assert not [
        attrs for _, attrs, _ in Elements(text).elements if attrs.keys() & {"src", "href", "action", "data", "style"}
    ]


def test_the_same_input_makes_the_same_page(tmp_path):
    _, page = show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    first = page.read_bytes()
    show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    assert page.read_bytes() == first


HOSTILE = (
    "</script><script>document.title='BROKEN'</script><img src='http://127.0.0.1:{port}/x' onerror=\"document.title="
    "'BROKEN'\"><!-- <script> \U0001f600\U0001d4b3 & &lt; @DATA@ the true answer, another true answer </style>"
)


def hostile_inputs(port=9):
    """(data, predictions, n best answers), every text of which tries to become HTML."""
    text = HOSTILE.format(port=port)
    data = squad(text, {text: (text, ["true answer"])})
    data["data"][0]["title"] = text
    data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = text.rindex("true answer")
    return data, {text: "true  answer"}, {text: [{"text": text, "probability": 1.0}]}


def test_no_text_of_the_data_becomes_html(tmp_path):
    data, predictions, n_best = hostile_inputs()
    result, page = show(tmp_path, data, predictions, n_best)
    assert result.returncode == 0, result.stderr
    elements = Elements(page.read_text())
    assert elements.count("script") == 2 and elements.count("img") == 0
    (question,) = data_of(page)["questions"]
    assert question["text"] == HOSTILE.format(port=9)


def test_half_a_character_is_kept(tmp_path):
    """JSON can hold one half of a surrogate pair, which UTF-8 cannot."""
    question = squad("a \ud800 b", {"a": ("\udfff", ["b"])})
    result, page = show(tmp_path, question, {"a": "\ud800 b"})
    assert result.returncode == 0, result.stderr
    assert data_of(page)["questions"][0]["prediction"] == "\ud800 b"


@needs_browser
def test_hostile_texts_in_a_browser(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        _, page = show(tmp_path, *hostile_inputs(server.getsockname()[1]))
        elements = browse(page)
        with pytest.raises(BlockingIOError):
            server.accept()
        port = server.getsockname()[1]
    assert elements.texts("title") == ["predictions.json on data.json"]
    assert elements.count("img") == 0
    # The second of the two: the prediction, of which there are two, touches the true answer.
    assert elements.texts("mark", class_="true predicted") == ["true answer"]
    (context,) = elements.texts("div", class_="context")
    assert context == HOSTILE.format(port=port)
    assert elements.texts("h2")[0].startswith("</script><script>document.title='BROKEN'</script><img")


@needs_browser
def test_what_a_browser_shows(tmp_path):
    _, page = show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    elements = browse(page, "id=partly")
    assert rows(elements) == ["Who swore?", "Where from?", "To whom?", "How many ships?"]
    assert elements.texts("h2") == ["Where from?"]
    # The prediction has another blank than the context; it and the answers overlap.
    marks = [(attrs["class"], text) for name, attrs, text in elements.elements if name == "mark"][2:]
    assert marks == [("predicted", "from "), ("true predicted", "Denmark"), ("true predicted", ", Iceland"),
                     ("true", " or Norway")]  # fmt: skip
    (totals,) = elements.texts("div", id="totals")
    assert "exact match 25.00F1 " in totals and "right 1" in totals and "without a prediction 1" in totals
    elements = browse(page, "id=right")
    assert "75.0 %" in elements.texts("td", class_="number")
    assert elements.texts("meter") == ["", ""]
    assert "2 times in the context; the file does not say which is meant" in elements.texts("div", class_="faint")


@needs_browser
@pytest.mark.parametrize(
    "address, expected",
    [
        ("show=right", ["Who swore?"]),
        ("show=missed", ["Where from?", "To whom?", "How many ships?"]),
        ("show=partly", ["Where from?"]),
        ("show=wrong", ["To whom?", "How many ships?"]),
        ("show=unpredicted", ["How many ships?"]),
        ("show=nonsense&order=nonsense", ["Who swore?", "Where from?", "To whom?", "How many ships?"]),
        ("order=f1", ["To whom?", "How many ships?", "Where from?", "Who swore?"]),
        ("order=confident", ["To whom?", "Who swore?", "Where from?", "How many ships?"]),
        ("search=SHIPS%3F", ["How many ships?"]),
        ("search=fealty&show=wrong", ["To whom?", "How many ships?"]),  # of the context, too
        ("search=nothing+has+this", []),
    ],
)
def test_searching_filtering_and_ordering(tmp_path, address, expected):
    _, page = show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    elements = browse(page, address)
    assert rows(elements) == expected
    assert elements.texts("output") == [f"{len(expected)} of 4"]
    assert elements.texts("h2") == expected[:1]


@needs_browser
def test_version_2_in_a_browser(tmp_path):
    questions = {"a": ("Who?", ["Rollo"]), "b": ("Why?", []), "c": ("When?", [])}
    n_best = {"c": [{"text": "", "probability": 0.5}, {"text": "Rollo", "probability": 0.5}]}
    _, page = show(tmp_path, squad(CONTEXT, questions, "v2.0"), {"a": "Rollo", "b": "", "c": "Rollo"}, n_best)
    assert rows(browse(page, "show=unanswerable")) == ["Why?", "When?"]
    elements = browse(page, "id=c")
    assert "(no answer)" in elements.texts("td")
    assert elements.texts("span", class_="wrong") == ["wrong"]
    assert elements.texts("mark", class_="predicted") == ["prediction", "Rollo"]
    assert "(no answer)" in elements.texts("button", type="button")


@needs_browser
def test_of_many_questions_only_those_seen_are_drawn(tmp_path):
    questions = {f"q{index}": (f"Question {index}?", ["Rollo"]) for index in range(10570)}
    _, page = show(tmp_path, squad(CONTEXT, questions), dict.fromkeys(questions, "Rollo"))
    elements = browse(page, "id=q10000")
    assert elements.texts("output") == ["10,570 of 10,570"]
    drawn = rows(elements)
    assert "Question 10000?" in drawn and len(drawn) < 60


@needs_browser
def test_texts_from_right_to_left_keep_to_themselves(tmp_path):
    """Their direction must not turn round what the page itself says beside them."""
    context = "\u05e8\u05d5\u05dc\u05d5 \u05d1\u05d0. \u05e8\u05d5\u05dc\u05d5."
    word = context.split()[0]
    _, page = show(tmp_path, squad(context, {"a": (f"{word}?", [word, word])}), {"a": word})
    elements = browse(page, "id=a").elements
    assert [text for name, _, text in elements if name == "bdi"] == [word] * 3
    directed = [(attrs.get("class"), text) for _, attrs, text in elements if attrs.get("dir") == "auto"]
    assert directed == [(None, f"{word}?"), (None, f"{word}?"), ("context", context)]


# Writes where the box of the context has been scrolled to, and where its mark is, into the title.
SCROLLED = """
const shownBox = document.querySelector(".context");
const markTop = document.querySelector(".context .predicted").offsetTop - shownBox.scrollTop;
const isLong = shownBox.clientHeight < shownBox.scrollHeight;
document.title = isLong && markTop > 0 && markTop < shownBox.clientHeight ? "seen" : "not seen";
"""


def scripted(folder, monkeypatch, script):
    """Has the tool make pages in which a script is run behind the page's own."""
    for name in ("page.html", "page.css", "elements.js", "page.js", "squad_page.js"):
        shutil.copy(html_page.PAGE_FOLDER / name, folder)
    with open(folder / "squad_page.js", "a") as file:
        file.write(script)
    monkeypatch.setattr(html_page, "PAGE_FOLDER", folder)


@needs_browser
def test_a_long_context_shows_its_answer(tmp_path, monkeypatch):
    scripted(tmp_path, monkeypatch, SCROLLED)
    context = "Nothing to see here. " * 2000 + CONTEXT + " Nothing to see here." * 2000
    _, page = show(tmp_path, squad(context, QUESTIONS), PREDICTIONS)
    assert browse(page, "id=right").texts("title") == ["seen"]


USER = """
setTimeout(() => { search.value = "SWORE"; search.dispatchEvent(new Event("input")); }, 0);
setTimeout(() => { document.querySelectorAll(".row")[1].click(); }, 500);
setTimeout(() => { document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "k", bubbles: true })); }, 700);
setTimeout(() => { document.querySelectorAll(".n-best button")[1].click(); }, 900);
"""


@needs_browser
def test_a_user_searches_clicks_and_types(tmp_path, monkeypatch):
    scripted(tmp_path, monkeypatch, USER)
    _, page = show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    elements = browse(page)
    assert elements.texts("h2") == ["Who swore?"]
    assert elements.texts("mark", class_="found") == ["Charles"]
    assert [attrs["aria-pressed"] for name, attrs, _ in elements.elements if "aria-pressed" in attrs] == [
        "false",
        "true",
    ]


@needs_browser
def test_a_narrow_window_shows_the_list_or_a_question(tmp_path):
    _, page = show(tmp_path, squad(CONTEXT, QUESTIONS), PREDICTIONS, N_BEST)
    assert [attrs.get("class") for name, attrs, _ in browse(page, width=500).elements if name == "body"] == [None]
    elements = browse(page, "id=right", width=500)
    assert [attrs.get("class") for name, attrs, _ in elements.elements if name == "body"] == ["one"]


# ---- bad input


@pytest.mark.parametrize(
    "data, predictions, n_best, fragments",
    [
        (b"{", PREDICTIONS, None, ["data.json: not JSON"]),
        (squad(CONTEXT, {}), PREDICTIONS, None, ["data.json: holds no question"]),
        (squad(CONTEXT, {"a": ("Why?", [])}) | {"data": [3]}, PREDICTIONS, None, ["data[0]: should be an object"]),
        (squad(CONTEXT, QUESTIONS), b"[]", None, ["predictions.json: not a predictions file"]),
        (squad(CONTEXT, QUESTIONS), {"other": "x"}, None, ["its 1 predictions are for none of the 4 questions"]),
        (squad(CONTEXT, QUESTIONS), {"right": 3}, None, ["predictions.json: right should be a string"]),
        (squad(CONTEXT, QUESTIONS), b'{"right": "x", "right": "y"}', None, ["1 ids occur more than once"]),
        (squad(CONTEXT, QUESTIONS), PREDICTIONS, b"[]", ["nbest.json: not an n-best file"]),
        (squad(CONTEXT, QUESTIONS), PREDICTIONS, {"right": [3]}, ["right[0]: should be an object"]),
        (squad(CONTEXT, QUESTIONS), PREDICTIONS, {"right": [{"text": "x"}]}, ["right[0]: probability is missing"]),
        (
            squad(CONTEXT, QUESTIONS),
            PREDICTIONS,
            {"right": [{"text": "x", "probability": float("nan")}]},
            ["right[0]: probability is nan"],
        ),
    ],
)
def test_bad_input(tmp_path, data, predictions, n_best, fragments):
    result, page = show(tmp_path, data, predictions, n_best)
    assert_fails_with_one_line(result, "show_squad.py: error: ", *fragments)
    assert not page.exists()


def test_a_question_of_version_1_without_an_answer(tmp_path):
    data = squad(CONTEXT, {"a": ("Why?", [])})
    del data["data"][0]["paragraphs"][0]["qas"][0]["is_impossible"]
    result, _ = show(tmp_path, data, {"a": "x"})
    assert_fails_with_one_line(result, "qas[0]: has no answer")


def test_unwritable_output(tmp_path):
    flags = {"input_file": DEV_FILE, "prediction_file": DEV_FILE}
    result = run_in_process(show_squad.main, "show_squad.py", "-o", tmp_path / "none" / "page.html", **flags)
    assert_fails_with_one_line(result, "--output", "cannot be written")
