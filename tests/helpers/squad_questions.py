"""SQuAD files with a few questions, and the records made from them."""

from hypothesis import strategies as st

import hard_text
from records import ofrecord


def one_paragraph(context, *questions):
    """Returns the content of a SQuAD file with one context; a question is (text, answer, answer_start)."""
    qas = [
        {"id": f"q{number}", "question": text, "answers": [{"text": answer, "answer_start": start}]}
        for number, (text, answer, start) in enumerate(questions)
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}


@st.composite
def squad_contents(draw, version_2=False):
    """A strategy for SQuAD files over hard text, including empty and wrong answers."""
    paragraphs = []
    for _ in range(draw(st.integers(1, 3))):
        context = draw(st.lists(hard_text.texts, max_size=6).map(" ".join))
        qas = []
        for _ in range(draw(st.integers(1, 2))):
            start = draw(st.integers(0, len(context)))
            end = draw(st.integers(start, min(start + 12, len(context))))
            answer = draw(st.one_of(st.just(context[start:end]), st.just(""), hard_text.texts))
            qas.append(
                {
                    "id": f"{len(paragraphs)}-{len(qas)}",
                    "question": draw(hard_text.texts),
                    "answers": [{"text": answer, "answer_start": start}],
                }
            )
            if version_2:
                qas[-1]["is_impossible"] = draw(st.booleans())
        paragraphs.append({"context": context, "qas": qas})
    return {"version": "v2.0" if version_2 else "1.1", "data": [{"paragraphs": paragraphs}]}


def read_records(folder):
    """Returns the records of all parts of `folder` in order, as dicts of lists."""
    records = []
    for number in range(len(list(folder.glob("part-*")))):
        for _, features in ofrecord.read(folder / f"part-{number}"):
            assert all(values.dtype == "int32" for values in features.values())
            records.append({name: values.tolist() for name, values in features.items()})
    return records
