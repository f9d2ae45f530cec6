"""Tests tools/create_classifier_data.py: GLUE files, users' own files, and one-line errors for bad ones."""

import json
import os
import re
import sys

import numpy as np
import pytest

import create_classifier_data
from in_process import run_in_process
from records import ofrecord
from running import ROOT, assert_fails_with_one_line
from text.classification import TASKS

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "##x", ".", "?"]

# Lines in the published format of each GLUE task.
MNLI_TRAIN = [
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label",
]  # fmt: skip
MNLI_DEV = [*MNLI_TRAIN[:11], "label2", "label3", "label4", "label5", "gold_label"]
MRPC = ["#1 ID", "#2 ID", "#1 String", "#2 String"]
QNLI = ["question", "sentence"]
PAIR = ["sentence1", "sentence2"]
STS_B = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"]


def lines(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


GLUE = {
    "cola": (
        lines(("gj04", "1", "", 'a "b.'), ("gj04", "0", "*", "c?")),
        lines(("index", "sentence"), ("0", 'a "b.'), ("1", "c?")),
        [('a "b.', None, "1"), ("c?", None, "0")],
    ),
    "sst-2": (
        lines(("sentence", "label"), ("a b ", "1"), ("c ", "0")),
        lines(("index", "sentence"), ("0", "a b"), ("1", "c")),
        [("a b", None, "1"), ("c", None, "0")],
    ),
    "mrpc": (
        "\ufeff" + lines(("Quality", *MRPC), ("1", "7", "8", 'a"', "b"), ("0", "9", "6", "c", "d")),
        lines(("index", *MRPC), ("0", "7", "8", 'a"', "b"), ("1", "9", "6", "c", "d")),
        [('a"', "b", "1"), ("c", "d", "0")],
    ),
    "sts-b": (
        lines(STS_B, ("0", *"ghijkl", "a", "b", "5.000"), ("1", *"ghijkl", "c", "d", "0.25")),
        lines(STS_B[:-1], ("0", *"ghijkl", "a", "b"), ("1", *"ghijkl", "c", "d")),
        [("a", "b", 5.0), ("c", "d", 0.25)],
    ),
    "qqp": (
        lines(
            ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
            ("0", "1", "2", "a?", "b?", "0"),
            ("3", "4"),
            ("5", "1", "2", "c?", "", "1"),
        ),
        lines(("id", "question1", "question2"), ("0", "a?", "b?"), ("1", "c?", "")),
        [("a?", "b?", "0"), ("c?", "", "1")],
    ),
    "mnli": (
        lines(
            MNLI_TRAIN,
            ("0", *"abcdefg", "a", "b", "neutral", "neutral"),
            ("1", *"abcdefg", "c", "d", "x", "entailment"),
            ("2", *"abcdefg", "e", "d", "x", "-"),
        ),
        lines(MNLI_TRAIN[:10], ("0", *"abcdefg", "a", "b"), ("1", *"abcdefg", "c", "d")),
        [("a", "b", "neutral"), ("c", "d", "entailment")],
    ),
    "qnli": (
        lines(("index", *QNLI, "label"), ("0", "a?", "b", "entailment"), ("1", "c?", "d", "not_entailment")),
        lines(("index", *QNLI), ("0", "a?", "b"), ("1", "c?", "d")),
        [("a?", "b", "entailment"), ("c?", "d", "not_entailment")],
    ),
    "rte": (
        lines(("index", *PAIR, "label"), ("0", "a", "b", "not_entailment"), ("1", "c", "d", "entailment")),
        lines(("index", "sentence1", "sentence2"), ("0", "a", "b"), ("1", "c", "d")),
        [("a", "b", "not_entailment"), ("c", "d", "entailment")],
    ),
    "wnli": (
        lines(("index", "sentence1", "sentence2", "label"), ("0", "a", "b", "1"), ("1", "c", "d", "0")),
        lines(("index", "sentence1", "sentence2"), ("0", "a", "b"), ("1", "c", "d")),
        [("a", "b", "1"), ("c", "d", "0")],
    ),
    "ax": (
        None,
        lines(("index", "sentence1", "sentence2"), ("0", "a", "b"), ("1", "c", "d")),
        [("a", "b", None), ("c", "d", None)],
    ),
}  # fmt: skip


def create(folder, text, name="input.tsv", output="records", **flags):
    """Runs the tool on a file with the given text or bytes."""
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    settings = {"vocab_file": folder / "vocab.txt", "output_dir": folder / output, "max_seq_length": 8, **flags}
    return run_in_process(
        create_classifier_data.main, "create_classifier_data.py", input_file=folder / name, **settings
    )


def records_in(folder):
    """Returns (both sentences with spaces between pieces, label) of each record."""
    found = []
    for _, features in ofrecord.read(folder / "part-0"):
        assert {name: len(values) for name, values in features.items()} == {
            **dict.fromkeys(("input_ids", "input_mask", "segment_ids"), 8), "label_ids": 1, "is_real_example": 1,
        }  # fmt: skip
        assert features["is_real_example"] == 1
        length = features["input_mask"].sum()
        pieces = np.array(VOCAB)[features["input_ids"]]
        assert (pieces[length:] == "[PAD]").all() and (features["segment_ids"][length:] == 0).all()
        pair = [" ".join(pieces[:length][features["segment_ids"][:length] == segment]) for segment in (0, 1)]
        found.append((*pair, features["label_ids"][0]))
    return found


def pieces_of(text):
    return " ".join(piece if piece in VOCAB else "[UNK]" for piece in re.findall(r"\w+|[^\w ]", text))


def expected(text_a, text_b, label):
    return (f"[CLS] {pieces_of(text_a)} [SEP]", f"{pieces_of(text_b)} [SEP]" if text_b else "", label)


@pytest.mark.parametrize("task", GLUE)
def test_files_of_glue(tmp_path, task):
    assert GLUE.keys() == TASKS.keys()
    training, test, examples = GLUE[task]
    labels = sorted({label for *_, label in examples}) if training and task != "sts-b" else None
    if training:
        result = create(tmp_path, training, task_name=task)
        assert result.returncode == 0, result.stderr
        assert ("skipped" in result.stderr) == (task in ("qqp", "mnli"))
        of_label = {label: index for index, label in enumerate(labels)} if labels else {5.0: 5.0, 0.25: 0.25}
        assert records_in(tmp_path / "records") == [expected(a, b, of_label[label]) for a, b, label in examples]
        described = json.loads((tmp_path / "records/records.json").read_text())
        assert (described["task_name"], described["is_regression"], described["has_labels"]) == (
            task, task == "sts-b", True,
        )  # fmt: skip
        labels_file = tmp_path / "records/labels.txt"
        assert (labels_file.read_text().splitlines() if labels else None) == labels
        assert labels_file.exists() == (labels is not None)
    flags = {"labels_file": tmp_path / "records/labels.txt"} if labels else {}
    result = create(tmp_path, test, task_name=task, output="test", **flags)
    assert result.returncode == 0 and "without labels" in result.stdout, result.stderr
    assert records_in(tmp_path / "test") == [expected(a, b, 0) for a, b, _ in examples]
    assert json.loads((tmp_path / "test/records.json").read_text())["has_labels"] is False
    assert (tmp_path / "test/labels.txt").exists() == (labels is not None)


def test_mnli_dev_sets_have_more_columns(tmp_path):
    row = ("0", *"abcdefg", "a", "b", *"vwxyz", "neutral")
    other = ("1", *"abcdefg", "c", "d", *"vwxyz", "contradiction")
    assert create(tmp_path, lines(MNLI_DEV, row, other), task_name="MNLI").returncode == 0
    assert records_in(tmp_path / "records") == [expected("a", "b", 1), expected("c", "d", 0)]


BY_NAME = {"text_column": "text", "label_column": "class"}
OWN = lines(("id", "text", "class"), ("1", "a b", "10"), ("2", "c", "9"), ("3", "d", "9"))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (OWN, {"text_column": "text", "label_column": "class"}),
        (OWN.replace("\n", "\r\n"), {"text_column": "text", "label_column": "3"}),
        (OWN.encode("utf-8-sig"), {"text_column": 2, "label_column": 3, "header": True}),
        (OWN.partition("\n")[2], {"text_column": 2, "label_column": 3}),
        (lines(("a b", "10"), ("c", "9"), ("d", "9"), ()), {}),
        (lines(("text", "class"), ("a b", "10"), ("c", "9"), ("d", "9")), {"header": True}),
        ('id,text,class\n1,"a\nb",10\n2,c,"9"\n3,d,9\n', {"name": "f.csv", **BY_NAME}),
        ('"a b"\t10\nc\t"9"\nd\t9\n', {"quoted": True}),
        ("a b,10\nc,9\nd,9\n", {"name": "f.CSV", "quoted": False}),
    ],
)  # fmt: skip
def test_own_files(tmp_path, text, flags):
    result = create(tmp_path, text, **flags)
    assert result.returncode == 0, result.stderr
    # Numeric labels are sorted by value.
    assert (tmp_path / "records/labels.txt").read_text() == "9\n10\n"
    assert records_in(tmp_path / "records") == [
        expected("a b", None, 1),
        expected("c", None, 0),
        expected("d", None, 0),
    ]


def test_pairs_are_truncated_like_googles(tmp_path):
    text = lines(("a a a a", "b b b b b b", "x"), ("a a a a a a a", "b", "y"), ("a", "b b", "y"), ("a", "b b", "x"))
    result = create(tmp_path, text, text_column=1, text_b_column=2, label_column=3)
    assert "2 of 4 examples are truncated to --max_seq_length=8" in result.stdout
    assert records_in(tmp_path / "records") == [
        expected("a a a", "b b", 0), expected("a a a a", "b", 1), expected("a", "b b", 1),
        expected("a", "b b", 0),
    ]  # fmt: skip


def test_parts_and_shuffling(tmp_path):
    text = lines(*(("a" if index % 2 else "b", str(index % 2)) for index in range(11)))
    create(tmp_path, text, part_num=3, output="in_order")
    create(tmp_path, text, part_num=3, output="shuffled", shuffle=True)
    found = [
        [(features["input_ids"][1], features["label_ids"][0])
         for part in range(3) for _, features in ofrecord.read(tmp_path / folder / f"part-{part}")]
        for folder in ("in_order", "shuffled")
    ]  # fmt: skip
    assert found[0] == [(4, 1) if index % 2 else (5, 0) for index in range(11)]
    assert found[1] != found[0] and sorted(found[1]) == sorted(found[0])


GOOD = lines(("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"))


@pytest.mark.parametrize(
    ("text", "flags", "fragments"),
    [
        (lines(("a", "x"), ("b", "y", "z"), ("c", "x")), {}, ["line 2: has 3 columns, the first line 2"]),
        (lines(("a", "x"), ("b",), ("c", "x")), {}, ["line 2: has 1 columns"]),
        (lines(("a", "x"), (" ", "y"), ("c", "x")), {}, ["line 2: an empty sentence"]),
        (lines(("a", "x"), ("\u200b", "y"), ("c", "x")), {}, ["line 2: the sentence has no visible character"]),
        (lines(("text", "class")) + GOOD, {}, ["line 1: no other line has its label, 'class'", "--header=False"]),
        (lines(("text", "class"), ("a", "1"), ("b", "0")), {}, ["line 1: no other line has its label, 'class'"]),
        (GOOD + lines(("e", "3")), {}, ["labels of two types: 'x' in line 1, the number 3 in line 5"]),
        (GOOD + 'e\t"x\ty"\n', {"quoted": True}, ["line 5: the label has a tab or line end"]),
        (GOOD + lines(("e", "nan")), {}, ["line 5: nan is not a label"]),
        (GOOD + lines(("e", "")), {}, ["line 5: has no label"]),
        (GOOD.replace("y", "x"), {}, ["all lines have the label 'x'"]),
        (lines(("a", "1.5"), ("b", "2"), ("c", "1.5"), ("d", "2")), {}, ["line 1: the label 1.5", "--regression"]),
        (lines(("a", "1.0"), ("b", "2"), ("c", "1"), ("d", "2")), {}, ["line 3: the label 1 is written 1.0 in line 1"]),
        (lines(*((f"a {i}", f"a {i}") for i in range(4))), {}, ["all 4 lines have different labels"]),
        (lines(("a", "1"), ("b", "nan")), {"regression": True}, ["line 2: 'nan' is not a score"]),
        (lines(("a", "1"), ("b", "good")), {"regression": True}, ["line 2: 'good' is not a score"]),
        (lines(("a", "1", "2")), {}, ["has 3 columns, 'a', '1', '2' in its first line", "--text_column"]),
        (OWN, {"text_column": "sentence"}, ["has no column sentence", "'id', 'text', 'class'"]),
        (OWN, {"text_column": 4}, ["has no column 4, but 3"]),
        (lines(("text", "text", "class"), ("a", "b", "x")), BY_NAME, ["several columns named text"]),
        (lines(("text", "class")), BY_NAME, ["has a header, but no line"]),
        ('a,"x\nb,y\n', {"name": "f.csv"}, ["line 1: unexpected end of data", "--quoted=False"]),
        ("", {}, ["is empty"]),
        (b"a\tx\nb\xff\ty\n", {}, ["not UTF-8"]),
        (OWN, {"task_name": "qqp"}, ["not a file of --task_name=qqp", "question1 and question2"]),
        (lines(("index", "sentence1", "sentence2", "label"), ("0", "a", "b")), {"task_name": "rte"}, ["line 2: has 3"]),
        (GOOD, {"labels_file": "labels.txt"}, ["line 2: the label 'y' is not in", "x, z"]),
        (lines(("text", "class")) + GOOD, {"labels_file": "labels.txt", "header": False}, ["line 1:", "header?"]),
        (GOOD, {"part_num": 5}, ["makes only 4 records"]),
        (GOOD, {"label_column": 2}, ["--label_column needs --text_column"]),
        (GOOD, {"max_seq_length": 4}, ["at least 5"]),
        (GOOD, {"task_name": "sts-b", "labels_file": "labels.txt"}, ["scores have no list of labels"]),
        (GOOD, {"task_name": "rte", "quoted": True}, ["for your own files"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path, monkeypatch, text, flags, fragments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("x\nz\n")
    assert_fails_with_one_line(create(tmp_path, text, **flags), *fragments)
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("text", "fragment"),
    [("", "has no label"), ("x\n\ny\n", "line 2: is empty"), ("x\ny\nx\n", "line 3: repeats the label 'x' of line 1")],
)
def test_bad_lists_of_labels(tmp_path, text, fragment):
    (tmp_path / "labels.txt").write_text(text)
    assert_fails_with_one_line(create(tmp_path, GOOD, labels_file=tmp_path / "labels.txt"), "labels.txt: ", fragment)


def test_warnings_and_notices(tmp_path):
    result = create(tmp_path, lines(('"a"', "Yes"), ("b", "yes"), ("c", "Yes"), ("d", "yes")))
    assert result.returncode == 0
    assert "1 sentences are in quotation marks, first line 1" in result.stderr
    assert "differ only in upper and lower case" in result.stdout


@pytest.mark.skipif("BERT_REPO" not in os.environ, reason="BERT_REPO names no checkout of google-research/bert")
@pytest.mark.parametrize("task", ["cola", "mrpc", "mnli"])
def test_records_equal_googles(tmp_path, task):
    """Compares each feature with the output of google-research/bert's run_classifier.py."""
    import tensorflow.compat.v1 as tensorflow_1

    import hard_text

    generator = np.random.default_rng(0)
    # Without tabs, line ends and surrogates.
    characters = [c for c in hard_text.CHARACTERS if c not in "\t\r\n" and not 0xD800 <= ord(c) < 0xE000]
    hard_words = [word for word in hard_text.WORDS if not set(word) & set("\t\r\n")]

    def sentence():
        words = [*generator.choice(hard_words, generator.integers(1, 12)), *generator.choice(characters, 3)]
        generator.shuffle(words)
        return "a " + " ".join(words)

    rows = {
        "cola": [("x", str(n % 2), "", sentence()) for n in range(300)],
        "mrpc": [("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                 *((str(n % 2), "1", "2", sentence(), sentence()) for n in range(300))],
        "mnli": [MNLI_TRAIN, *((str(n), *"abcdefg", sentence(), sentence(), "x",
                                ["neutral", "entailment", "contradiction"][n % 3]) for n in range(300))],
    }[task]  # fmt: skip
    text = lines(*rows)
    assert create(tmp_path, text, name="train.tsv", task_name=task, vocab_file=ROOT / "dataset/vocab.txt",
                  max_seq_length=24).returncode == 0  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", tensorflow_1)
        patch.syspath_prepend(os.environ["BERT_REPO"])
        import tokenization

        import run_classifier as googles

        patch.setattr(googles.DataProcessor, "_read_tsv", staticmethod(
            lambda path, quotechar=None: [line.split("\t") for line in open(path, newline="\n").read().split("\n")[:-1]]
        ))  # fmt: skip
        processor = {"cola": googles.ColaProcessor, "mrpc": googles.MrpcProcessor, "mnli": googles.MnliProcessor}[
            task
        ]()
        tokenizer = tokenization.FullTokenizer(str(ROOT / "dataset/vocab.txt"))
        examples = processor.get_train_examples(str(tmp_path))
        features = [
            googles.convert_single_example(9, example, processor.get_labels(), 24, tokenizer) for example in examples
        ]
    records = [features for _, features in ofrecord.read(tmp_path / "records/part-0")]
    assert len(records) == len(features) == 300
    for record, feature in zip(records, features, strict=True):
        for name in ("input_ids", "input_mask", "segment_ids"):
            assert record[name].tolist() == getattr(feature, name)
        assert record["label_ids"][0] == feature.label_id
