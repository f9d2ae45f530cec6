"""Tests text/squad_windows.py and tools/create_squad_data.py against the implementation in reference_squad.py."""

import json
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import create_squad_data
import hard_text
import reference_squad
from in_process import run_in_process
from records import ofrecord
from running import assert_fails_with_one_line, run
from squad_questions import one_paragraph, read_records, squad_contents
from system.errors import UserError
from text import squad_file, squad_windows
from text.tokenization import Tokenizer

SCRIPT = "tools/create_squad_data.py"
TOKENIZER = Tokenizer(hard_text.VOCAB, do_lower_case=True)
# Narrow windows: contexts of hard text need many.
LIMITS = {"max_seq_length": 24, "doc_stride": 5, "max_query_length": 6}


def write_inputs(folder, content, vocab=hard_text.VOCAB):
    """Writes content.json and vocab.txt to `folder` and returns the flags that name them."""
    (folder / "content.json").write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    return {"input_file": folder / "content.json", "vocab_file": folder / "vocab.txt"}


def expected_records(content, vocab, is_training, version_2=False, do_lower_case=True, shuffle_seed=None, **limits):
    examples = reference_squad.read_examples(content, is_training, version_2)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(examples)
    features = reference_squad.make_features(
        examples, vocab, do_lower_case=do_lower_case, is_training=is_training, **limits
    )
    records = []
    for feature in features:
        record = {name: feature[name] for name in ("input_ids", "input_mask", "segment_ids")}
        if is_training:
            record.update(start_positions=[feature["start"]], end_positions=[feature["end"]])
        else:
            record["unique_ids"] = [feature["unique_id"]]
        records.append(record)
    return records


def make_records(content, **flags):
    """Returns the records that create_squad_data.py, run within this process, makes from `content`; [] if none."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        flags = {**write_inputs(folder, content), "output_dir": folder / "parts", **flags}
        arguments = [SCRIPT, *(f"--{name}={value}" for name, value in flags.items())]
        with mock.patch.object(sys, "argv", arguments):
            try:
                create_squad_data.main()
            except UserError as error:
                assert "makes no record" in str(error)
                return []
        return read_records(folder / "parts")


@settings(max_examples=100, deadline=None)
@given(squad_contents(), st.booleans(), st.integers(1, 30), st.integers(1, 8), st.booleans())
def test_records_of_any_text(content, is_training, doc_stride, max_query_length, do_lower_case):
    limits = {"max_seq_length": 24, "doc_stride": doc_stride, "max_query_length": max_query_length}
    expected = expected_records(content, hard_text.VOCAB, is_training, do_lower_case=do_lower_case, **limits)
    assert make_records(content, is_training=is_training, do_lower_case=do_lower_case, **limits) == expected


@settings(max_examples=50, deadline=None)
@given(squad_contents(version_2=True))
def test_training_records_of_version_2(content):
    expected = expected_records(content, hard_text.VOCAB, is_training=True, version_2=True, **LIMITS)
    assert make_records(content, is_training=True, version_2_with_negative=True, **LIMITS) == expected


@pytest.mark.parametrize("is_training", [True, False])
def test_records_of_each_hard_text(is_training):
    contexts = [text for text in hard_text.EXAMPLES if text.strip()]
    contents = [
        one_paragraph(text, (question, text[start:end], start))
        for text in contexts
        for question in ("what the", "old " * 30)
        for start, end in [(0, 1), (0, 4), (len(text) - 3, len(text)), (0, len(text)), (2, 2), (0, 0), (1, 9)]
    ]
    content = {"data": [article for content in contents for article in content["data"]]}
    for number, article in enumerate(content["data"]):
        article["paragraphs"][0]["qas"][0]["id"] = str(number)
    expected = expected_records(content, hard_text.VOCAB, is_training, **LIMITS)
    assert len(expected) > len(contents) / 2
    assert make_records(content, is_training=is_training, **LIMITS) == expected


def test_context_of_more_than_ten_windows():
    context = " ".join(f"the old house {number}" for number in range(60))
    content = one_paragraph(context, ("old", "house 59", context.index("house 59")), ("old", "the", 0))
    records = make_records(content, is_training=True, **LIMITS)
    assert records == expected_records(content, hard_text.VOCAB, True, **LIMITS)
    first, second = records[: len(records) // 2], records[len(records) // 2 :]
    assert len(first) > 10
    assert [bool(record["start_positions"][0]) for record in first] == [False] * (len(first) - 1) + [True]
    assert [bool(record["start_positions"][0]) for record in second] == [True] + [False] * (len(second) - 1)


def test_question_of_more_than_64_pieces():
    content = one_paragraph("old house", ("the " * 100, "house", 4))
    (record,) = make_records(content, is_training=True, max_seq_length=128)
    the, old, house = (hard_text.VOCAB[piece] for piece in ("the", "old", "house"))
    assert record["input_ids"][:69] == [2] + [the] * 64 + [3, old, house, 3]
    assert record["segment_ids"][:70] == [0] * 66 + [1] * 3 + [0]
    assert sum(record["input_mask"]) == 69
    assert record["start_positions"] == record["end_positions"] == [67]


@pytest.mark.parametrize(
    "context, answer, expected",
    [
        # The examples in google-research/bert's comments: 1895 is a piece of its own, Japan is not.
        ("The leader was John Smith (1895-1943).", "1895", "1895"),
        ("The house electronics industry", "hous", "house"),
        ("The old house", "The", "the"),
        ("The old house", "house", "house"),
        ("The  old\t house.", "old\t house", "old house"),
        ("a Zoë's b", "Zoë", "zoe"),
        # U+202F separates words, the no-break space does not.
        ("old\u202fhouse a\u00a0b", "house", "house"),
    ],
)
def test_answers_are_narrowed_to_pieces(context, answer, expected):
    entry = {"answers": [{"text": answer, "answer_start": context.index(answer)}]}
    document = squad_windows.tokenize_document(context, TOKENIZER)
    question = squad_file.Question("id", "?", "here", entry)
    first, last = squad_windows.find_answer(question, document, context, TOKENIZER, version_2_with_negative=False)
    assert " ".join(document.pieces[first : last + 1]).replace(" ##", "") == expected


@pytest.mark.parametrize(
    "context, answer, start",
    [
        ("The old house", "new", 4),
        ("The old house", "old", 8),
        ("The old house", "house", 9),
        ("The old house", "e", 13),
        ("The old house", "e", -1),
        ("The old house", "", 10**30),
        ("", "", 0),
        (" \t ", "", 1),
    ],
)
def test_questions_whose_answer_is_not_found_are_skipped(tmp_path, context, answer, start):
    content = one_paragraph("The old house", ("?", "old", 4))
    content["data"] += one_paragraph(context, ("?", answer, start))["data"]
    flags = write_inputs(tmp_path, content)
    result = run(SCRIPT, output_dir=tmp_path / "parts", is_training=True, **flags)
    assert result.returncode == 0
    assert result.stderr.startswith("create_squad_data.py: warning: skipped 1 of 2 questions whose answer")
    assert result.stderr.endswith(" at answer_start: q0\n")
    assert len(read_records(tmp_path / "parts")) == 1


def test_windows():
    assert squad_windows.make_windows(0, 10, 3) == []
    assert squad_windows.make_windows(10, 10, 3) == [(0, 10)]
    assert squad_windows.make_windows(11, 10, 3) == [(0, 10), (3, 8)]
    # A stride longer than the windows skips no pieces.
    assert squad_windows.make_windows(25, 10, 100) == [(0, 10), (10, 10), (20, 5)]
    # In run_squad.py's example the last window has the maximum context of "bought".
    words = "the man went to the store and bought a gallon of milk".split()
    windows = [squad_windows.Window(0, 5), squad_windows.Window(3, 5), squad_windows.Window(6, 5)]
    assert squad_windows.windows_of_maximum_context(windows)[words.index("bought")] == 2


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.integers(1, 20), st.integers(1, 30))
def test_maximum_context(num_pieces, max_length, doc_stride):
    windows = squad_windows.make_windows(num_pieces, max_length, doc_stride)
    ranges = [range(start, start + length) for start, length in windows]
    expected = [reference_squad.max_context_window(ranges, piece) for piece in range(num_pieces)]
    assert squad_windows.windows_of_maximum_context(windows).tolist() == expected


def test_parts_are_contiguous_blocks(tmp_path):
    content = one_paragraph("The old house", *[("what " + "x" * number, "old", 4) for number in range(11)])
    flags = write_inputs(tmp_path, content)
    result = run(SCRIPT, output_dir=tmp_path / "parts", is_training=False, part_num=4, **flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert "11 questions, 11 records" in result.stdout
    sizes = [len(list(ofrecord.read(tmp_path / "parts" / f"part-{number}"))) for number in range(4)]
    assert sum(sizes) == 11 and max(sizes) - min(sizes) <= 1
    records = read_records(tmp_path / "parts")
    assert [record["unique_ids"] for record in records] == [[1000000000 + number] for number in range(11)]
    assert set(records[0]) == {"unique_ids", "input_ids", "input_mask", "segment_ids"}

    # Overwriting with fewer parts removes the earlier ones.
    again = {"output_dir": tmp_path / "parts", "is_training": False, "part_num": 2, **flags}
    assert_fails_with_one_line(run(SCRIPT, **again), "exists already", "--overwrite")
    assert run(SCRIPT, **again, overwrite=True).returncode == 0
    assert read_records(tmp_path / "parts") == records


def test_shuffle_equals_googles():
    content = one_paragraph("The old house", *[("what " + "x" * number, "old", 4) for number in range(30)])
    limits = {"max_seq_length": 64, "doc_stride": 5, "max_query_length": 40}
    plain = make_records(content, is_training=True, **limits)
    assert plain == expected_records(content, hard_text.VOCAB, True, **limits)
    shuffled = make_records(content, is_training=True, shuffle=True, random_seed=7, **limits)
    assert shuffled == expected_records(content, hard_text.VOCAB, True, shuffle_seed=7, **limits) != plain


@pytest.mark.parametrize("flags", [{}, {"version_2_with_negative": True}])
def test_impossible_questions_of_version_2_point_at_cls(tmp_path, flags):
    content = one_paragraph("The old house", ("?", "old", 4), ("?", "house", 8))
    possible, impossible = content["data"][0]["paragraphs"][0]["qas"]
    possible["is_impossible"], impossible["is_impossible"] = False, True
    impossible["answers"], impossible["plausible_answers"] = [], impossible["answers"]
    flags = {**flags, **write_inputs(tmp_path, {**content, "version": "v2.0"})}
    result = run(SCRIPT, output_dir=tmp_path / "parts", is_training=True, **flags)
    assert (result.returncode, result.stderr) == (0, "")
    records = read_records(tmp_path / "parts")
    assert [record["start_positions"] for record in records] == [[4], [0]]
    assert [record["end_positions"] for record in records] == [[4], [0]]


def test_the_first_of_several_answers_is_used(tmp_path):
    content = one_paragraph("The old house", ("?", "old", 4))
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"].append({"text": "house", "answer_start": 8})
    result = run(SCRIPT, output_dir=tmp_path / "parts", is_training=True, **write_inputs(tmp_path, content))
    assert result.returncode == 0
    text = "1 of 1 questions have several answers: the first of each is used"
    assert result.stderr == f"create_squad_data.py: warning: {text}\n"
    assert read_records(tmp_path / "parts")[0]["start_positions"] == [4]


def test_answers_without_text_are_counted(tmp_path):
    content = one_paragraph("The old house", ("?", "old", 4), ("?", "", 0), ("?", " ", 3))
    flags = {"output_dir": tmp_path / "parts", "is_training": True, **write_inputs(tmp_path, content)}
    result = run_in_process(create_squad_data.main, SCRIPT, **flags)
    assert result.returncode == 0
    assert "warning: 2 of 3 questions have an answer without text and train on some word" in result.stderr
    assert len(read_records(tmp_path / "parts")) == 3


def test_an_answer_that_occurs_earlier_in_the_same_word_is_counted(tmp_path):
    """Chinese paragraphs are one word, of which run_squad.py takes the first occurrence."""
    content = one_paragraph("中国a中国 b", ("?", "中国", 0), ("?", "中国", 3), ("?", "b", 6), ("?", "a", 2))
    flags = {"output_dir": tmp_path / "parts", "is_training": True, **write_inputs(tmp_path, content)}
    result = run_in_process(create_squad_data.main, SCRIPT, **flags)
    assert result.returncode == 0
    assert "1 of 4 questions train on an earlier occurrence of their answer in text without spaces" in result.stderr
    assert "run_squad.py: q1; put spaces" in result.stderr


def test_warning_lists_characters_missing_from_the_vocabulary(tmp_path):
    content = one_paragraph("The ก house", ("กข?", "house", 6))
    flags = {"output_dir": tmp_path / "parts", "is_training": False, **write_inputs(tmp_path, content)}
    result = run_in_process(create_squad_data.main, SCRIPT, **flags)
    assert result.stdout.splitlines()[-1] == "[UNK]: 40.00% of 5 pieces"
    assert "40% of the pieces of the text are [UNK], most often because of ก ข;" in result.stderr


GOOD = one_paragraph("The old house", ("?", "old", 4))


def changed(path, value):
    """Returns GOOD with the value at `path`, a list of keys, replaced, or removed if `value` is `...`."""
    content = json.loads(json.dumps(GOOD))
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


PARAGRAPH = ["data", 0, "paragraphs", 0]
QUESTION = [*PARAGRAPH, "qas", 0]
ANSWER = [*QUESTION, "answers", 0]


@pytest.mark.parametrize(
    "content, fragments",
    [
        (b"", ["not JSON", "line 1"]),
        (b'{"data": [', ["not JSON", "line 1, column 11"]),
        (b"\xff\xfe{}", ["not UTF-8", "byte 0"]),
        (b"[" * 100_000, ["not JSON"]),
        (b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["not JSON", "recursion"]),
        (b"\x80\x04K\x01.", ["not UTF-8"]),
        ([], ["not a SQuAD file"]),
        (3, ["not a SQuAD file"]),
        ({"version": "1.1"}, ["not a SQuAD file", "data"]),
        (changed(["data"], {}), ["data should be an array, not an object"]),
        (changed(["data", 0], "x"), ["data[0]: should be an object, not a string"]),
        (changed(["data", 0, "paragraphs"], ...), ["data[0]: paragraphs is missing"]),
        (changed(["data", 0, "paragraphs"], None), ["data[0]: paragraphs should be an array, not null"]),
        (changed(PARAGRAPH, []), ["data[0].paragraphs[0]: should be an object, not an array"]),
        (changed([*PARAGRAPH, "context"], ...), ["paragraphs[0]: context is missing"]),
        (changed([*PARAGRAPH, "context"], 1.5), ["context should be a string, not a number"]),
        (changed([*PARAGRAPH, "qas"], "q"), ["qas should be an array"]),
        (changed(QUESTION, 1), ["qas[0]: should be an object"]),
        (changed([*QUESTION, "id"], 5), ["qas[0]: id should be a string, not a whole number"]),
        (changed([*QUESTION, "question"], ...), ["qas[0]: question is missing"]),
        (changed([*QUESTION, "answers"], ...), ["qas[0]: answers is missing"]),
        (changed([*QUESTION, "answers"], []), ["qas[0]: has no answer", "is_impossible"]),
        (changed(ANSWER, "old"), ["answers[0]: should be an object"]),
        (changed([*ANSWER, "text"], ["old"]), ["answers[0]: text should be a string"]),
        (changed([*ANSWER, "answer_start"], "4"), ["answers[0]: answer_start should be a whole number"]),
        (changed([*ANSWER, "answer_start"], True), ["answers[0]: answer_start should be a whole number, not true"]),
        (changed([*ANSWER, "answer_start"], 4.0), ["answers[0]: answer_start should be a whole number"]),
        (changed(["data"], []), ["makes no record: no question has a context"]),
    ],
)
def test_hostile_json_gets_one_line(tmp_path, content, fragments):
    path = write_inputs(tmp_path, GOOD)["input_file"]
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    result = run(
        SCRIPT, input_file=path, vocab_file=tmp_path / "vocab.txt", output_dir=tmp_path / "parts", is_training=True
    )
    assert_fails_with_one_line(result, path, *fragments)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    "flags, fragments",
    [
        ({"input_file": "none.json"}, ["there is no such file", "none.json"]),
        ({"input_file": "."}, ["is a folder; give a file"]),
        ({"vocab_file": "none.txt"}, ["vocab_file", "none.txt"]),
        ({"max_seq_length": 67}, ["max_seq_length=67", "67"]),
        ({"max_seq_length": 0}, ["max_seq_length"]),
        ({"doc_stride": 0}, ["doc_stride"]),
        ({"part_num": 0}, ["part_num"]),
        ({"part_num": 2}, ["makes only 1 records", "--part_num=2"]),
        ({"is_training": "maybe"}, ["is_training", "maybe"]),
        ({"is_training": False, "shuffle": True}, ["shuffle"]),
        ({"output_dir": "content.json"}, ["content.json: exists already"]),
        ({"output_dir": "."}, ["exists already"]),
        ({"do_lowercase": True}, ["--do_lowercase"]),
    ],
)
def test_bad_flags_get_one_line(tmp_path, flags, fragments):
    flags = {**write_inputs(tmp_path, GOOD), "output_dir": "parts", "is_training": True, **flags}
    assert_fails_with_one_line(run(SCRIPT, cwd=tmp_path, **flags), *fragments)
    assert {path.name for path in tmp_path.iterdir()} == {"content.json", "vocab.txt"}


def test_is_training_has_no_default(tmp_path):
    result = run(SCRIPT, output_dir=tmp_path / "parts", **write_inputs(tmp_path, GOOD))
    assert_fails_with_one_line(result, "--is_training")


def test_repeated_question_id(tmp_path):
    content = one_paragraph("The old house", ("?", "old", 4), ("who?", "The", 0))
    content["data"][0]["paragraphs"][0]["qas"][1]["id"] = "q0"
    flags = {"output_dir": tmp_path / "parts", **write_inputs(tmp_path, content)}
    assert_fails_with_one_line(run(SCRIPT, is_training=False, **flags), "qas[0]", "qas[1]", "same id", "'q0'")
    # Training records have no ids.
    assert run(SCRIPT, is_training=True, **flags).returncode == 0
