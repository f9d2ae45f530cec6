"""The README's table of messages against the code: none is missing there, and none is there for nothing."""

import re

import pytest

from messages import ANY, Message, all_messages
from readme_blocks import README

MESSAGES = all_messages()

# What the system says, in words that do not stand in the code.
OF_THE_SYSTEM = {
    "...: Permission denied",
    "...: No space left on device",
    "...: Disk quota exceeded",
    "...: File too large",
}
# What is found among the messages, but tells of no trouble, or is only ever a part of a message that is in the table.
NEEDS_NO_ROW = (
    # The converters tell what they have done, and what they have left out and why.
    "converted ...",
    "stored as float32: ...",
    "skipped ...",
    "flags that fit this model: ...",
    "layers: ...",
    "state of another optimiser than Adam",
    "a single number: state of the training, not a weight",
    "of type ..., so not a weight",
    "the training step: ...",
    # Which device, kernels and snapshot a run has.
    "as --device=cpu asks",
    "native kernels: ...",
    "the newest snapshot is ...",
    "no snapshot has been saved yet",
    # The reasons of notices and errors on resuming and saving, and of the notice on --use_fp16.
    "a reader's position ...",
    "the saved position of the reader ...",
    "there are more readers than parts",
    "the random state can be restored with the native kernels only ...",
    "the saved random state is damaged",
    "after ... iterations ...; ...",
    "it needs the native kernels ...",
    "this processor has no bfloat16 instructions ...",
    # In a legend; a variable's meta file.
    "... (no finite loss from step ...)",
    "shape { ...",
)


def rows():
    """The patterns in the first column of the README's table."""
    section = README[README.index("## Troubleshooting") : README.index("## Results")]
    cells = re.findall(r"^\| (`.+?) \| ", section, re.MULTILINE)
    return [pattern for cell in cells for pattern in re.findall(r"`([^`]+)`", cell)]


ROWS = rows()


def matches(row, text):
    """Whether a row's pattern fits: `...` stands for anything, and a number for whatever value the code puts there."""
    row = re.sub(r"^\.\.\.[:,;]? | ?\.\.\.$", "...", row)
    parts = [re.sub(r"\d+", rf"(?:\\d+|{ANY})", re.escape(part)) for part in row.split("...")]
    return re.fullmatch(".*".join(parts), text.replace("\n", " ")) is not None


def test_matches():
    assert matches("...: not JSON ...", f"{ANY}: not JSON; give another")
    assert matches("after 300 seconds, ...", f"after {ANY} seconds, node")
    assert not matches("...: not JSON", f"{ANY}: not JSON; give another")
    assert not matches("after 300 seconds", f"after {ANY} seconds, node")


def is_said(row):
    return any(matches(row, message.text) for message in MESSAGES)


def test_every_row_is_of_a_message():
    assert [row for row in ROWS if row not in OF_THE_SYSTEM and not is_said(row)] == []
    assert len(set(ROWS)) == len(ROWS) > 150


def test_no_row_fits_just_anything():
    assert [row for row in ROWS if len(re.findall("[A-Za-z]", row)) < 6] == []


def test_every_message_has_a_row():
    patterns = (*ROWS, *NEEDS_NO_ROW)
    troubles = [message for message in MESSAGES if not message.is_output]
    assert len(troubles) > 300
    assert [it for it in troubles if not any(matches(row, it.text) for row in patterns)] == []


def test_what_needs_no_row_is_said():
    assert [row for row in NEEDS_NO_ROW if not is_said(row)] == []


@pytest.mark.parametrize(
    "file, text",
    [
        ("output_files.py", f"{ANY}: exists already; give another folder, or --overwrite to replace it"),  # raise
        ("config.py", f"--num_epochs and --iter_num exclude each other; see {ANY} --help"),  # parser.error
        ("metrics.py", f"{ANY}: numbers are lost ({ANY})"),  # print_warning
        ("resume.py", f"not quite the run that was stopped: {ANY}"),  # in a list in a returned dict
        ("create_squad_data.py", f"{ANY} question(s) have several answers: the first of each is used"),  # append
        ("nodes.py", f"node {ANY} has been started twice"),  # in a message to another node
        ("record_reader.cpp", f"{ANY}: cannot be read any more: {ANY}"),
        ("setup.sh", f"{ANY} is not writable, and .venv has to be made in it"),
        ("launch_slurm.sh", "give a command: sbatch scripts/launch_slurm.sh COMMAND [ARGUMENT...]"),
    ],
)
def test_messages_are_found(file, text):
    """In each of the ways in which the code has them."""
    assert Message(text, file, False) in MESSAGES
