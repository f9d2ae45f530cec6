"""Tests text/pretraining_text.py against simple implementations: finding, distributing and tokenising documents."""

import hashlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hard_text
import reference_squad
from system.errors import RunError, UserError
from text import pretraining_text, tokenization
from text.pretraining_text import Extent, deal_extents, read_documents, scan_file, split_blocks
from text.tokenization import Tokenizer


def ignore_progress(number):
    pass


def split_documents(text):
    """Returns the documents of a text, runs of non-blank lines, as lists of lines."""
    documents = [[]]
    for line in text.split("\n"):
        if line.strip():
            documents[-1].append(line.strip())
        else:
            documents.append([])
    return [document for document in documents if document]


def test_byte_order_mark_is_removed(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("\ufeff\na\n\nb\n".encode())
    _, scan = scan_file(0, str(path), 0, ignore_progress)
    assert [(extent.offset, extent.size, extent.sentences) for extent in scan.extents] == [(0, 7, 1), (7, 2, 1)]
    assert pretraining_text.read_extent(scan.extents[0], [str(path)]) == "\na\n\n"


# Lines that are blank in different ways, and lines with multi-byte characters.
blank_lines = ["", " ", "\t", "\r", "\u00a0", "\u3000 ", "\x1c"]
lines = st.sampled_from([*blank_lines, "a", "b c", " é", "中国\r", "\u200b", "😀" * 9])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lines, max_size=30), st.integers(0, 60), st.integers(1, 50))
def test_extents_hold_whole_documents(tmp_path, monkeypatch, text_lines, extent_bytes, read_bytes):
    monkeypatch.setattr(pretraining_text, "READ_BYTES", read_bytes)
    text = "\n".join(text_lines)
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    reports = []
    file, scan = scan_file(3, str(path), extent_bytes, reports.append)
    assert file == 3
    assert scan.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert sum(reports) == len(text.encode())

    found = []
    end = 0
    for number, extent in enumerate(scan.extents):
        assert extent.file == 3 and extent.offset == end
        end = extent.offset + extent.size
        documents = split_documents(text.encode()[extent.offset : end].decode())
        assert len(documents) == extent.documents >= 1
        assert sum(map(len, documents)) == extent.sentences
        assert extent.size >= extent_bytes or number == len(scan.extents) - 1
        found += documents
    assert found == split_documents(text)


texts = hard_text.texts.filter(lambda text: not any("\ud800" <= character < "\ue000" for character in text))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, max_size=12), st.booleans(), st.sampled_from([1, 3, 1 << 18]), st.sampled_from([0, 2, 32]))
def test_tokens_of_documents(tmp_path, monkeypatch, text_lines, do_lower_case, max_cached, max_cached_characters):
    monkeypatch.setattr(tokenization, "MAX_CACHED", max_cached)
    monkeypatch.setattr(tokenization, "MAX_CACHED_CHARACTERS", max_cached_characters)
    text = "\n".join(text_lines)
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    _, scan = scan_file(0, str(path), 1, ignore_progress)
    tokenizer = Tokenizer(hard_text.VOCAB, do_lower_case)
    documents = read_documents(scan.extents, [str(path)], tokenizer)
    again = read_documents(scan.extents, [str(path)], tokenizer)

    expected = []
    for document in split_documents(text):
        sentences = [reference_squad.tokenize(line, hard_text.VOCAB, do_lower_case) for line in document]
        expected.append([[hard_text.VOCAB[piece] for piece in sentence] for sentence in sentences if sentence])
    expected = [document for document in expected if document]
    for found in (documents, again):
        assert found.ids.dtype == np.int32
        sentences = [
            found.ids[start:end].tolist()
            for start, end in zip(found.sentence_starts, found.sentence_starts[1:], strict=False)
        ]
        assert [
            sentences[start:end] for start, end in zip(found.document_starts, found.document_starts[1:], strict=False)
        ] == expected
        assert found.sentence_starts[-1] == len(found.ids) and found.document_starts[-1] == len(sentences)


def test_hard_sentences_one_by_one(tmp_path):
    path = tmp_path / "text"
    for example in hard_text.EXAMPLES:
        line = example.encode("utf-8", "ignore").decode().replace("\n", " ")
        path.write_text(line, newline="")
        for do_lower_case in (True, False):
            extents = [Extent(0, 0, path.stat().st_size, 1, 1)] if line else []
            documents = read_documents(extents, [str(path)], Tokenizer(hard_text.VOCAB, do_lower_case))
            expected = reference_squad.tokenize(line, hard_text.VOCAB, do_lower_case)
            assert documents.ids.tolist() == [hard_text.VOCAB[piece] for piece in expected], line


def test_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(tokenization, "MAX_CACHED", 100)
    tokenizer = Tokenizer(hard_text.VOCAB, True)
    assert len(tokenizer["lighthouse"]) == len(tokenizer["lighthouse"]) > 0
    for index in range(250):
        tokenizer[str(index)]
    assert len(tokenizer) <= 100 and len(tokenizer._ids_of_words) <= 100
    assert "lighthouse" not in tokenizer


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 5)), min_size=1, max_size=200),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_dealing(sizes, part_num, seed):
    extents = [Extent(0, index, size, documents, documents) for index, (size, documents) in enumerate(sizes)]
    try:
        dealt = deal_extents(extents, part_num, seed)
    except UserError as error:
        # It may fail only with fewer than two extents for each part.
        assert "too few" in str(error)
        assert len(extents) < 2 * part_num
        return
    assert sorted(extent for part in dealt for extent in part) == extents
    assert all(sum(extent.documents for extent in part) >= 2 for part in dealt)
    assert dealt == deal_extents(extents, part_num, seed)
    # With few spare documents, another order may not succeed.
    if len(extents) > 8 and len(extents) >= 2 * part_num:
        assert dealt != deal_extents(extents, part_num, seed + 1)


def test_part_num_beyond_memory():
    with pytest.raises(UserError, match="--part_num=2147483647: 3 documents are too few"):
        deal_extents([Extent(0, 0, 1000, 3, 30)], 2**31 - 1, 0)


def test_parts_have_equal_size_and_sample_all_files():
    extents = [Extent(file, 1000 * index, 1000 + index, 3, 30) for file in range(4) for index in range(500)]
    dealt = deal_extents(extents, 10, 1)
    sizes = [sum(extent.size for extent in part) for part in dealt]
    assert max(sizes) - min(sizes) < 2000
    for part in dealt:
        assert {extent.file for extent in part} == {0, 1, 2, 3}
        assert [extent.offset for extent in part] != sorted(extent.offset for extent in part)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=50), st.integers(1, 100))
def test_blocks(monkeypatch, sizes, block_bytes):
    monkeypatch.setattr(pretraining_text, "BLOCK_BYTES", block_bytes)
    extents = [Extent(0, index, size, documents, documents) for index, (size, documents) in enumerate(sizes)]
    blocks = split_blocks(extents)
    assert [extent for block in blocks for extent in block] == extents
    if sum(extent.documents for extent in extents) >= 2:
        assert all(sum(extent.documents for extent in block) >= 2 for block in blocks)
    for block in blocks:
        # A block may need two extents for its two documents, and takes the last extent if that has one document.
        assert sum(extent.size for extent in block) < block_bytes + 3 * 30


@pytest.mark.parametrize("read_bytes", [4, 1 << 20])
def test_text_that_is_not_utf8(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(pretraining_text, "READ_BYTES", read_bytes)
    path = tmp_path / "text"
    for content, offset, byte in [
        (b"one\ntwo\xff three\n", 7, "0xff"),
        ("é\né".encode()[:-1], 3, "0xc3"),
        (b"abc\n\n\x80", 5, "0x80"),
        ("Größe".encode("latin-1"), 2, "0xf6"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"not UTF-8: byte {offset} is {byte}"):
            scan_file(0, str(path), 1, ignore_progress)


def test_too_long_lines_and_documents_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining_text, "READ_BYTES", 10)
    monkeypatch.setattr(pretraining_text, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(pretraining_text, "MAX_DOCUMENT_BYTES", 200)
    path = tmp_path / "text"
    path.write_text("short\n\n" + "long " * 20)
    with pytest.raises(UserError, match="the line at byte 7 is longer"):
        scan_file(0, str(path), 1, ignore_progress)
    path.write_text("short\n\n" + "a line\n" * 40)
    with pytest.raises(UserError, match="the document at byte 7 is longer"):
        scan_file(0, str(path), 1, ignore_progress)
    path.write_text(("a line\n" * 20 + "\n") * 5)
    assert sum(extent.documents for extent in scan_file(0, str(path), 1, ignore_progress)[1].extents) == 5


def test_input_that_changes_after_the_scan(tmp_path):
    path = tmp_path / "text"
    path.write_text("one\n\ntwo\n")
    _, scan = scan_file(0, str(path), 1, ignore_progress)
    for content in (b"one\n", b"one\n\n\xffwo\n"):
        path.write_bytes(content)
        with pytest.raises(RunError, match="changed"):
            read_documents(scan.extents, [str(path)], Tokenizer(hard_text.VOCAB, True))
