"""tools/extract_wikipedia.py: a small dump made here, and the text that a reader of its markup expects."""

import bz2
import json
import signal
import subprocess
import sys
import time
from html import escape

import pytest

import extract_wikipedia
from in_process import run_in_process
from running import ROOT, assert_fails_with_one_line
from text.sentences import split_sentences
from text.wikipedia import MOST_OPEN, read_article

SCRIPT = "tools/extract_wikipedia.py"
SITE = (
    "<siteinfo><sitename>Wikipédia</sitename><namespaces><namespace key='-2' case='first-letter'>Média</namespace>"
    "<namespace key='0' case='first-letter' /><namespace key='1'>Discussion</namespace>"
    "<namespace key='6'>Fichier</namespace><namespace key='14'>Catégorie</namespace></namespaces></siteinfo>"
)
TOWER = """{{Infobox building
| name = Tower {{nowrap|of {{lang|xx|[[Xanadu]]}}}}
| height = {{convert|30|m}}
}}
[[File:Tower.jpg|thumb|The [[tower]] at night.<ref>A photograph.</ref>]]
The '''Tower of Xanadu''' ({{IPA|x}}; born as ''Turm'') stands
in [[Xanadu (city)|Xanadu]].<ref name="a">P. 3. {{cite|a=[[b]]}}</ref>
Mr. J. Smith built it in the U.S. Army&nbsp;style.<ref name=a /> Was it “high?” No!<!-- or
was it? -->
It was 30&thinsp;m high &amp; wide ({{convert|30|m}}), he said.

== History ==
{| class="wikitable"
! Year !! Height {{x}}
|-
| 1900 || {| nested
|}
|}
* A list item.
*# Deeper [[item]].
: Indented.
Its mass is <math>m_{1}</math> tonnes. It is l'''old''.<br />See [http://x.org its page], not [http://y.org].
<gallery>
a.jpg|A picture
</gallery>
<blockquote>Quoted by [[:fr:Paul|Paul]].</blockquote>
[[Fichier:Plan.png|Un plan]] [[Catégorie:Tours]] [[fr:Tour]] __NOTOC__
Cafe\u0301 \U0001f600 東京は首都。大きい！ &#xD800;
A line with {{broken markup.
The rest follows <ref>unclosed.

The end is here.
"""
# Worked out by hand.
TOWER_SENTENCES = [
    "The Tower of Xanadu (born as Turm) stands in Xanadu.",
    "Mr. J. Smith built it in the U.S. Army style.",
    "Was it “high?”",
    "No!",
    "It was 30 m high & wide, he said.",
    "It is l'old.",
    "See its page, not.",
    "Quoted by Paul.",
    "Caf\u00e9 \U0001f600 東京は首都。",
    "大きい！",
    "The end is here.",
]


def page(title, text, ns=0, inside=""):
    return (
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>1</id>{inside}<revision><id>2</id><model>wikitext</model>"
        f"<text bytes='1' xml:space='preserve'>{escape(text)}</text></revision></page>\n"
    )


def dump(path, pages, beginning="<mediawiki xmlns='http://www.mediawiki.org/xml/export-0.11/' version='0.11'>"):
    path.write_bytes(bz2.compress(f"{beginning}{SITE}{''.join(pages)}</mediawiki>".encode()))
    return path


def extract(path, output, *options, workers=1, **flags):
    flags = {"input_file": path, "output_dir": output, "workers": workers, **flags}
    return run_in_process(extract_wikipedia.main, SCRIPT, *options, **flags)


def text_of(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.txt"))).decode()


def test_text_of_a_dump(tmp_path):
    filler = "This town lies by the sea. It has a port. " * 10
    pages = [
        page("Tower of Xanadu", TOWER),
        page("Old name", "#REDIRECT [[Tower of Xanadu]]" + filler, inside="<redirect title='Tower of Xanadu' />"),
        page("Discussion:Tower", filler, ns=1),
        page("Modèle:x", filler, ns=10),
        page("Xanadu", "{{disambiguation}}\n" + filler),
        page("Stub", "Too short. {{stub}}"),
        page("Broken", "{{a|[[b" * 10000 + filler),
        page("Town", filler),
    ]
    result = extract(dump(tmp_path / "dump.xml.bz2", pages), tmp_path / "text", min_characters=200)
    assert result.returncode == 0, result.stderr
    town = ["This town lies by the sea.", "It has a port."] * 10
    text = "".join("\n".join(sentences) + "\n\n" for sentences in (TOWER_SENTENCES, town))
    assert text_of(tmp_path / "text") == text
    size = len(text.encode())
    assert result.stdout == (
        "left out: 1 articles of less than 200 characters, 1 disambiguation pages\n"
        f"articles: 2, sentences: {len(TOWER_SENTENCES) + 20}, bytes: {size}, files: 1, in {tmp_path / 'text'}\n"
    )
    assert result.stderr.endswith("warning: 1 articles left out: too many marks in their markup are never closed\n")
    assert json.loads((tmp_path / "text/wikipedia.json").read_text()) == {
        "pages": 8, "articles": 2, "sentences": len(TOWER_SENTENCES) + 20, "bytes": size,
        "short": 1, "disambiguations": 1, "broken": 1,
    }  # fmt: skip

    assert_fails_with_one_line(extract(tmp_path / "dump.xml.bz2", tmp_path / "text"), "exists already")
    options = ("--overwrite", "--keep_disambiguation")
    result = extract(tmp_path / "dump.xml.bz2", tmp_path / "text", *options, min_characters=0)
    assert "articles: 4, " in result.stdout
    assert "Too short.\n\n" in text_of(tmp_path / "text")


def test_same_bytes_for_any_number_of_workers(tmp_path, monkeypatch):
    # Several batches, several files, the streams of a multistream dump, two dumps.
    monkeypatch.setattr(extract_wikipedia, "BATCH_CHARACTERS", 20_000)
    monkeypatch.setattr(extract_wikipedia, "FILE_BYTES", 50_000)
    monkeypatch.setattr(extract_wikipedia, "READ_BYTES", 5000)
    pages = [
        page(f"Number {index}", f"This is article {index}. It is long. " * (5 + index % 50)) for index in range(200)
    ]
    dump(tmp_path / "1.bz2", pages)
    data = bz2.decompress((tmp_path / "1.bz2").read_bytes())
    (tmp_path / "2.bz2").write_bytes(
        b"".join(bz2.compress(data[at : at + 30_000]) for at in range(0, len(data), 30_000))
    )
    found = []
    for workers in (1, 2):
        folder = tmp_path / f"text-{workers}"
        result = extract(f"{tmp_path}/?.bz2", folder, workers=workers, min_characters=0)
        assert result.returncode == 0, result.stderr
        assert "articles: 400, " in result.stdout
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(found[0]) > 4 and found[0] == found[1]
    documents = text_of(tmp_path / "text-1").removesuffix("\n\n").split("\n\n")
    assert [document.split(".")[0] for document in documents] == [
        f"This is article {index}" for index in range(200)
    ] * 2


TELLS_MEMORY = """
import runpy, sys
from pathlib import Path
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def peak_memory(path, output):
    """Runs the tool in a process of its own; returns the most memory that it took, in KiB."""
    command = [sys.executable, "-c", TELLS_MEMORY, ROOT / SCRIPT, f"--input_file={path}", f"--output_dir={output}"]
    result = subprocess.run([*command, "--workers=1"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_dump(tmp_path):
    article = page("Town", "This town lies by the sea, and has a port and a market.\n\n" * 100)
    talk = page("Talk:Town", "x" * 1_000_000, ns=1)
    small = peak_memory(dump(tmp_path / "small.bz2", [article, talk]), tmp_path / "small")
    large = peak_memory(
        dump(tmp_path / "large.bz2", [article, talk] + [article] * 200 + [talk] * 60), tmp_path / "large"
    )
    assert large - small < 30 << 10


BOMB = "<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;'>]><mediawiki>"


@pytest.mark.parametrize(
    ("data", "fragment"),
    [
        (b"<mediawiki></mediawiki>", "not bzip2"),
        (b"", "not bzip2"),
        (bz2.compress(b"<mediawiki>" * 5000)[:-20], "ends too early"),
        (bz2.compress(bytes(range(256)) * 4000)[:500] + bytes(500), "damaged"),
        (bz2.compress(b"plain text"), "not the XML of a dump: syntax error (line 1, column 1)"),
        (bz2.compress(b"<mediawiki><page><title>x</title>"), "not the XML of a dump: no element found"),
        (bz2.compress(b"<feed><doc></doc></feed>"), "it begins with <feed>, not <mediawiki>"),
        (bz2.compress(b"<mediawiki></mediawiki>"), "no article with text among 0 pages"),
        (bz2.compress(f"<mediawiki>{page('A', '')}</mediawiki>".encode()), "no article with text among 1 pages"),
        (bz2.compress(BOMB.encode()), "declares a document type"),
        (bz2.compress(b"<mediawiki><page><text>" + b"x" * (33 << 20)), "a page of more than 32 million characters"),
    ],
)
def test_what_is_no_dump_is_one_line(tmp_path, data, fragment):
    (tmp_path / "dump.bz2").write_bytes(data)
    result = extract(tmp_path / "dump.bz2", tmp_path / "text")
    assert_fails_with_one_line(result, "dump.bz2: ", fragment)
    assert [path.name for path in tmp_path.iterdir()] == ["dump.bz2"]


def test_an_interruption_leaves_nothing(tmp_path):
    dump(tmp_path / "dump.bz2", [page("Town", "This town lies by the sea. " * 2000)] * 400)
    command = [sys.executable, ROOT / SCRIPT, f"--input_file={tmp_path}/dump.bz2", f"--output_dir={tmp_path}/text"]
    process = subprocess.Popen([*command, "--workers=2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".text.*.tmp/text-00000.txt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, len(stderr.splitlines())) == (130, 1), stderr
    assert [path.name for path in tmp_path.iterdir()] == ["dump.bz2"]


@pytest.mark.parametrize(
    "marks", ["[[a|", "{{a|", "{|\n", "{{{a|", "<ref>", "<ref name=", "<a ", "[http://a ", "<!--", "''"]
)
def test_markup_that_is_never_closed_takes_no_time(marks):
    # Unchecked, the parser takes from seconds to hours for these.
    begin = time.process_time()
    article = read_article(marks * 10_000 + "\n\nA sentence.")
    assert time.process_time() - begin < 5
    assert article is None or article.sentences[-1:] in ([], ["A sentence."])
    article = read_article("A sentence.\n\n" + marks * (MOST_OPEN // 2))
    assert article.sentences[:1] in ([], ["A sentence."])


def test_variants_of_chinese():
    """The first one of several is kept; a rule for the rest of the page shows nothing."""
    markup = (
        "-{H|zh-cn:打印机;zh-tw:印表機;}-'''-{zh-hans:[[软件|计算机软件]]; zh-hant:電腦軟體}-'''"
        "是-{A|zh-cn:程序;zh-tw:程式;}-。"
        "-{T|zh-hans:标题;zh-hant:標題}--{只此一种}-，-{zh-hans;zh-hant|写法}-；x-{}-y。"
    )
    assert read_article(markup).sentences == ["计算机软件是程序。", "只此一种，写法；xy。"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two? Three! Four… Five", ["One.", "Two?", "Three!", "Four…", "Five"]),
        (
            'He said "yes." She (too?) said no.) (So it is.) It ended.',
            ['He said "yes."', "She (too?) said no.)", "(So it is.)", "It ended."],
        ),
        (
            "Dr. A. B. Smith of the U.S. Navy, e.g. Here, ate 3.5 pies. 12 more came.",
            ["Dr. A. B. Smith of the U.S. Navy, e.g. Here, ate 3.5 pies.", "12 more came."],
        ),
        ("Am 3. Oktober. Das war's.", ["Am 3. Oktober.", "Das war's."]),
        ("It is so.no end here. but lower case.", ["It is so.no end here. but lower case."]),
        ("東京は首都。「大きい！」と言う。", ["東京は首都。", "「大きい！」", "と言う。"]),
        ("  ", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences
