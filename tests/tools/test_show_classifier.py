"""tools/show_classifier.py: what the page says, the page in a browser, with hostile texts too, and bad input."""

import math

import pytest

import show_classifier
from browsers import Elements, browse, data_of, needs_browser, rows
from in_process import run_in_process
from running import assert_fails_with_one_line

pytestmark = pytest.mark.slow

LABELS = "bad\ngood\nso-so\n"
FILE = "sentence\tlabel\nA fine day\tgood\nA dull day\tbad\nA day\tso-so\nAnother day\tgood\n"
ROWS = "0.125\t0.75\t0.125\n0.125\t0.5\t0.375\n0.25\t0.25\t0.5\n0.0\t1.0\t0.0\n"


def show(folder, text=FILE, results=ROWS, labels=LABELS, **flags):
    """Runs the tool on files of these contents. Returns (finished process, path of the page)."""
    (folder / "dev.tsv").write_text(text)
    (folder / "test_results.tsv").write_text(results)
    if labels is not None:
        (folder / "labels.txt").write_text(labels)
    columns = {} if "task_name" in flags else {"text_column": "sentence", "label_column": "label"}
    flags = {"input_file": folder / "dev.tsv", "prediction_dir": folder, **columns, **flags}
    flags = {name: value for name, value in flags.items() if value is not None}
    page = folder / "page.html"
    return run_in_process(show_classifier.main, "show_classifier.py", "-o", page, **flags), page


def test_labels_predictions_and_metrics(tmp_path):
    result, page = show(tmp_path)
    assert (result.returncode, result.stderr, result.stdout) == (0, "", f"4 sentences in {page}\n")
    data = data_of(page)
    assert data["labels"] == ["bad", "good", "so-so"] and data["metrics"] == [["accuracy", 0.75]]
    assert data["confusion"] == [[0, 1, 0], [0, 2, 0], [0, 0, 1]]
    assert data["items"][1] == {
        "id": "3",
        "texts": ["A dull day"],
        "label": 0,
        "prediction": 1,
        "probabilities": [0.125, 0.5, 0.375],
    }


def test_the_metrics_of_a_task(tmp_path):
    """MRPC's F1 is that of the label 1: 2 right of 3 predicted, of 2 that there are."""
    text = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    text += "".join(f"{label}\t1\t2\ta\tb\n" for label in (1, 0, 1, 0))
    results = "0.25\t0.75\n0.25\t0.75\n0.125\t0.875\n0.75\t0.25\n"
    result, page = show(tmp_path, text, results, "0\n1\n", task_name="mrpc")
    assert result.returncode == 0, result.stderr
    assert dict(data_of(page)["metrics"]) == {"accuracy": 0.75, "f1": pytest.approx(0.8)}
    assert data_of(page)["items"][0]["texts"] == ["a", "b"]


def test_scores(tmp_path):
    text = "sentence\tlabel\na\t1\nb\t2\nc\t4\n"
    result, page = show(tmp_path, text, "1.5\n2.0\n3.0\n", None)
    assert result.returncode == 0, result.stderr
    data = data_of(page)
    assert data["labels"] is None and data["confusion"] is None
    # By hand: the deviations are (-4/3, -1/3, 5/3) and (-2/3, -1/6, 5/6), which are proportional.
    assert dict(data["metrics"]) == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    _, page = show(tmp_path, text, "1.5\n1.5\n1.5\n", None)
    assert data_of(page)["metrics"] == [["pearson", None], ["spearman", None]]


def test_a_file_without_labels(tmp_path):
    result, page = show(tmp_path, "a\nb\nc\nd\n", text_column=None, label_column=None)
    assert result.returncode == 0, result.stderr
    data = data_of(page)
    assert not data["has_labels"] and data["metrics"] == []
    assert [item["prediction"] for item in data["items"]] == [1, 1, 2, 1]


def test_labels_without_names_are_numbers(tmp_path):
    text = "sentence\tlabel\na\t2\nb\t0\nc\t2\nd\t0\n"
    result, page = show(tmp_path, text, labels=None)
    assert result.returncode == 0, result.stderr
    assert data_of(page)["labels"] == ["0", "1", "2"]


HOSTILE = "</script><img src=x onerror=\"document.title='BROKEN'\"> <!-- @DATA@ \U0001f600"


@needs_browser
def test_hostile_texts_in_a_browser(tmp_path):
    text = f"sentence\tlabel\n{HOSTILE}\t{HOSTILE}\nb\tgood\nc\tgood\nd\tgood\n"
    _, page = show(tmp_path, text, labels=f"{HOSTILE}\ngood\nx\n")
    elements = browse(page)
    assert elements.texts("title") == ["test_results.tsv on dev.tsv"]
    assert elements.count("img") == 0 and Elements(page.read_text()).count("script") == 2
    assert elements.texts("h2") == [HOSTILE]


@needs_browser
def test_what_a_browser_shows(tmp_path):
    _, page = show(tmp_path)
    elements = browse(page, "id=3")
    assert rows(elements) == ["A fine day", "A dull day", "A day", "Another day"]
    assert elements.texts("h2") == ["A dull day"] and elements.texts("span", class_="wrong") == ["wrong"]
    assert elements.texts("div", id="totals") == ["accuracy 0.7500sentences 4"]
    assert elements.texts("td", class_="number")[:3] == ["50.0 %", "37.5 %", "12.5 %"]
    assert elements.texts("button", aria_pressed="true") == ["1"]


@needs_browser
@pytest.mark.parametrize(
    "address, expected",
    [
        ("show=wrong", ["A dull day"]),
        ("show=right&search=ANOTHER", ["Another day"]),
        ("show=label-1", ["A fine day", "Another day"]),
        ("show=predicted-2", ["A day"]),
        ("show=label-0-predicted-1", ["A dull day"]),
        ("order=doubtful", ["A dull day", "A day", "A fine day", "Another day"]),
        ("order=confident", ["Another day", "A fine day", "A dull day", "A day"]),
        ("order=missed", ["A dull day", "A day", "A fine day", "Another day"]),
    ],
)
def test_searching_filtering_and_ordering(tmp_path, address, expected):
    _, page = show(tmp_path)
    assert rows(browse(page, address)) == expected


@needs_browser
def test_scores_in_a_browser(tmp_path):
    _, page = show(tmp_path, "sentence\tlabel\na\t1\nb\t2\nc\t4\n", "1.5\n2.0\n3.0\n", None)
    elements = browse(page, "order=error")
    assert rows(elements) == ["c", "a", "b"]
    assert elements.texts("div", id="totals") == ["pearson 1.0000spearman 1.0000sentences 3"]


@pytest.mark.parametrize(
    "changes, fragments",
    [
        ({"results": ROWS + ROWS}, ["test_results.tsv: has 8 rows, but", "4 sentences"]),
        ({"results": "0.5\tx\n"}, ["test_results.tsv: line 1: not a row of numbers: '0.5\\tx'"]),
        ({"results": "0.5\t0.5\n1.0\n"}, ["test_results.tsv: line 2: has 1 columns, the first line 2"]),
        ({"results": "0.5\t1.5\n"}, ["test_results.tsv: line 1: not a row of probabilities"]),
        ({"results": f"{math.nan}\n"}, ["test_results.tsv: line 1: not a row of probabilities"]),
        ({"results": ""}, ["test_results.tsv: has 0 rows"]),
        ({"labels": "bad\ngood\n"}, ["labels.txt: has 2 labels, but test_results.tsv beside it 3 columns"]),
        ({"labels": "a\nb\nc\n"}, ["dev.tsv: line 2: the label 'good' is not in", "labels.txt: a, b, c"]),
        ({"results": "1\n2\n3\n4\n"}, ["dev.tsv: line 2: 'good' is not a score"]),
        ({"text": "sentence\tlabel\n"}, ["dev.tsv: has a header, but no line"]),
        ({"task_name": "qqp"}, ["not a file of --task_name=qqp"]),
    ],
)
def test_bad_input(tmp_path, changes, fragments):
    result, page = show(tmp_path, **changes)
    assert_fails_with_one_line(result, "show_classifier.py: error: ", *fragments)
    assert not page.exists()


def test_a_page_in_place_of_the_labels(tmp_path):
    result, _ = show(tmp_path, output=tmp_path / "labels.txt")
    assert_fails_with_one_line(result, "labels.txt: would replace its own input")
    assert (tmp_path / "labels.txt").read_text() == LABELS
