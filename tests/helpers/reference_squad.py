"""A simple, slow implementation of google-research/bert's SQuAD data and answers.

Processes one character, one piece or one pair of positions at a time. It shares no code with the suite;
`tests/text/test_against_google.py` compares the suite with Google's own scripts if a checkout is available.
"""

import functools
import json
import math
import unicodedata

CJK = [
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
]
# The characters and texts of a test come again and again.
remembered = functools.lru_cache(10000)


@remembered
def is_blank(character):
    return character in [" ", "\t", "\n", "\r"] or unicodedata.category(character) == "Zs"


@remembered
def is_control(character):
    return character not in ["\t", "\n", "\r"] and unicodedata.category(character) in ["Cc", "Cf"]


@remembered
def is_cjk(character):
    return any(low <= ord(character) <= high for low, high in CJK)


@remembered
def is_punctuation(character):
    code = ord(character)
    for low, high in [(33, 47), (58, 64), (91, 96), (123, 126)]:
        if low <= code <= high:
            return True
    return unicodedata.category(character)[0] == "P"


@remembered
def split_words(text, do_lower_case):
    """Cleans, separates CJK characters, splits at spaces, lower-cases and strips accents, splits at punctuation."""
    cleaned = ""
    for character in text:
        if ord(character) == 0 or ord(character) == 0xFFFD or is_control(character):
            continue
        if is_blank(character):
            cleaned += " "
        elif is_cjk(character):
            cleaned += " " + character + " "
        else:
            cleaned += character
    words = []
    for token in cleaned.split():
        if do_lower_case:
            decomposed = unicodedata.normalize("NFD", token.lower())
            token = "".join(character for character in decomposed if unicodedata.category(character) != "Mn")
        word = ""
        for character in token:
            if is_punctuation(character):
                words.append(word)
                words.append(character)
                word = ""
            else:
                word += character
        words.append(word)
    # A word may be empty or contain a space by now.
    return tuple(part for word in words for part in word.split())


def split_pieces(word, vocab):
    """Greedy longest match from the left; [UNK] if it fails anywhere, or for more than 200 characters."""
    if len(word) > 200:
        return ["[UNK]"]
    pieces = []
    rest = word
    while rest:
        prefix = "##" if pieces else ""
        lengths = [length for length in range(1, len(rest) + 1) if prefix + rest[:length] in vocab]
        if not lengths:
            return ["[UNK]"]
        pieces.append(prefix + rest[: max(lengths)])
        rest = rest[max(lengths) :]
    return pieces


def tokenize(text, vocab, do_lower_case):
    return [piece for word in split_words(text, do_lower_case) for piece in split_pieces(word, vocab)]


def read_examples(content, is_training=False, version_2=False):
    """Returns a dict for each question of the parsed SQuAD file; skips training questions whose answer is not found."""
    examples = []
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            words = []
            word_of_character = []
            in_word = False
            for character in paragraph["context"]:
                if character in [" ", "\t", "\r", "\n", "\u202f"]:
                    in_word = False
                elif in_word:
                    words[-1] += character
                else:
                    words.append(character)
                    in_word = True
                word_of_character.append(len(words) - 1)
            for qa in paragraph["qas"]:
                example = {"id": qa["id"], "question": qa["question"], "words": words, "impossible": False}
                if is_training and version_2 and qa["is_impossible"]:
                    example["impossible"] = True
                elif is_training:
                    text, start = qa["answers"][0]["text"], qa["answers"][0]["answer_start"]
                    try:
                        first = word_of_character[start]
                        last = word_of_character[start + len(text) - 1]
                    except IndexError:
                        continue
                    if not words:
                        continue
                    if " ".join(text.split()) not in " ".join(words[first : last + 1]):
                        continue
                    example.update(answer=text, first_word=first, last_word=last)
                examples.append(example)
    return examples


def make_features(examples, vocab, max_seq_length, doc_stride, max_query_length, do_lower_case, is_training=False):
    """Returns a dict for each window, in order."""
    features = []
    for number, example in enumerate(examples):
        query = tokenize(example["question"], vocab, do_lower_case)[:max_query_length]
        pieces = []
        word_of_piece = []
        piece_of_word = []
        for index, word in enumerate(example["words"]):
            piece_of_word.append(len(pieces))
            for piece in tokenize(word, vocab, do_lower_case):
                pieces.append(piece)
                word_of_piece.append(index)
        if is_training and not example["impossible"]:
            first = piece_of_word[example["first_word"]]
            if example["last_word"] + 1 < len(example["words"]):
                last = piece_of_word[example["last_word"] + 1] - 1
            else:
                last = len(pieces) - 1
            first, last = improve_span(pieces, first, last, tokenize(example["answer"], vocab, do_lower_case))

        room = max_seq_length - len(query) - 3
        windows = []
        begin = 0
        while begin < len(pieces):
            windows.append(range(begin, min(begin + room, len(pieces))))
            if windows[-1].stop == len(pieces):
                break
            begin += min(len(windows[-1]), doc_stride)

        for index, window in enumerate(windows):
            tokens = ["[CLS]"] + query + ["[SEP]"] + [pieces[i] for i in window] + ["[SEP]"]
            padding = max_seq_length - len(tokens)
            feature = {
                "example": number,
                "unique_id": 1000000000 + len(features),
                "tokens": tokens,
                "input_ids": [vocab[token] for token in tokens] + [0] * padding,
                "input_mask": [1] * len(tokens) + [0] * padding,
                "segment_ids": [0] * (len(query) + 2) + [1] * (len(window) + 1) + [0] * padding,
                # position in the input -> word of the context
                "words": {len(query) + 2 + i - window.start: word_of_piece[i] for i in window},
                "is_max_context": {
                    len(query) + 2 + i - window.start: max_context_window(windows, i) == index for i in window
                },
            }
            if is_training:
                feature["start"] = feature["end"] = 0
                if not example["impossible"] and first >= window.start and last <= window.stop - 1:
                    feature["start"] = first - window.start + len(query) + 2
                    feature["end"] = last - window.start + len(query) + 2
            features.append(feature)
    return features


def improve_span(pieces, first, last, answer):
    for start in range(first, last + 1):
        for end in range(last, start - 1, -1):
            if pieces[start : end + 1] == answer:
                return start, end
    return first, last


def max_context_window(windows, piece):
    """Returns the first window with the piece that has the highest min(pieces left, right) + 0.01 x length."""
    best, best_score = None, None
    for index, window in enumerate(windows):
        if piece in window:
            score = min(piece - window.start, window.stop - 1 - piece) + 0.01 * len(window)
            if best is None or score > best_score:
                best, best_score = index, score
    return best


def n_best_positions(logits, n_best_size):
    """Returns the positions of the largest logits, largest first; ties keep their order."""
    remaining = list(range(len(logits)))
    best = []
    while remaining and len(best) < n_best_size:
        greatest = max(logits[i] for i in remaining)
        position = next(i for i in remaining if logits[i] == greatest)
        best.append(position)
        remaining.remove(position)
    return best


def answer(example, features, results, settings):
    """Returns (answer, n-best list of dicts, null odds or None); `results`: unique_id -> (start logits, end logits)."""
    version_2 = settings["version_2_with_negative"]
    candidates = []
    null_score, null = 1000000, (0, 0)
    for feature in features:
        start_logits, end_logits = results[feature["unique_id"]]
        if version_2 and start_logits[0] + end_logits[0] < null_score:
            null_score, null = start_logits[0] + end_logits[0], (start_logits[0], end_logits[0])
        ends = n_best_positions(end_logits, settings["n_best_size"])
        for start in n_best_positions(start_logits, settings["n_best_size"]):
            for end in ends:
                if start not in feature["words"] or end not in feature["words"]:
                    continue
                if not feature["is_max_context"][start]:
                    continue
                if not start <= end < start + settings["max_answer_length"]:
                    continue
                candidates.append((feature, start, end, start_logits[start], end_logits[end]))
    if version_2:
        candidates.append((None, 0, 0, null[0], null[1]))
    candidates = sorted(candidates, key=lambda candidate: -(candidate[3] + candidate[4]))

    n_best = []
    for feature, start, end, start_logit, end_logit in candidates:
        if len(n_best) == settings["n_best_size"]:
            break
        text = ""
        if feature is not None:
            words = example["words"][feature["words"][start] : feature["words"][end] + 1]
            joined = " ".join(feature["tokens"][start : end + 1]).replace(" ##", "").replace("##", "")
            text = final_text(" ".join(joined.split()), " ".join(words), settings["do_lower_case"])
        if text not in [entry["text"] for entry in n_best]:
            n_best.append({"text": text, "probability": None, "start_logit": start_logit, "end_logit": end_logit})
    if version_2 and "" not in [entry["text"] for entry in n_best]:
        n_best.append({"text": "", "probability": None, "start_logit": null[0], "end_logit": null[1]})
    if not n_best:
        n_best.append({"text": "empty", "probability": None, "start_logit": 0.0, "end_logit": 0.0})

    scores = [entry["start_logit"] + entry["end_logit"] for entry in n_best]
    total = 0.0
    for score in scores:
        total += math.exp(score - max(scores))
    for entry, score in zip(n_best, scores, strict=True):
        entry["probability"] = math.exp(score - max(scores)) / total

    if not version_2:
        return n_best[0]["text"], n_best, None
    answers = [entry for entry in n_best if entry["text"]]
    if not answers:
        # Google's script raises an exception here.
        return "", n_best, null_score
    odds = null_score - answers[0]["start_logit"] - answers[0]["end_logit"]
    return "" if odds > settings["null_score_diff_threshold"] else answers[0]["text"], n_best, odds


def final_text(predicted, original, do_lower_case):
    """Returns the part of `original` that the normalised `predicted` represents, or all of it if they do not align."""
    normalised = " ".join(split_words(original, do_lower_case))
    if predicted == "" or predicted not in normalised:
        return original
    # The indexes of the characters of `predicted` among the non-space characters.
    numbers = []
    number = 0
    begin = normalised.index(predicted)
    for position, character in enumerate(normalised):
        if begin <= position < begin + len(predicted):
            numbers.append(number)
        if character != " ":
            number += 1
    places = [position for position, character in enumerate(original) if character != " "]
    if len(places) != number:
        return original
    return original[places[numbers[0]] : places[numbers[-1]] + 1]


def write_predictions(content, vocab, results, settings):
    """Returns the texts of predictions.json, nbest_predictions.json and null_odds.json for a parsed SQuAD file."""
    examples = read_examples(content)
    features = make_features(
        examples,
        vocab,
        settings["max_seq_length"],
        settings["doc_stride"],
        settings["max_query_length"],
        settings["do_lower_case"],
    )
    predictions, n_best, odds = {}, {}, {}
    for number, example in enumerate(examples):
        own = [feature for feature in features if feature["example"] == number]
        predictions[example["id"]], n_best[example["id"]], odds[example["id"]] = answer(example, own, results, settings)
    return [json.dumps(content, indent=4) + "\n" for content in (predictions, n_best, odds)]
