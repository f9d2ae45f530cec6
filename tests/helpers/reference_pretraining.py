"""A simple, slow implementation of BERT's pre-training instances: one token and one random number at a time.

Written from the description in the BERT paper (appendix A.2) and the behaviour of google-research/bert's script; it
shares no code with the suite.
"""

from collections import namedtuple

Instance = namedtuple("Instance", "a b is_random_next tokens predictions")  # predictions: [(position, token, shown)]


def instances_of_document(documents, number, seq_length, predictions, share, short_share, whole_words, vocab, rng):
    """Returns the instances of `documents[number]`; a document is a list of sentences, a sentence a list of tokens."""
    room = seq_length - 3
    target = rng.randint(2, room) if rng.random() < short_share else room
    waiting = list(documents[number])
    instances = []
    while waiting:
        chunk = []
        while waiting and sum(map(len, chunk)) < target:
            chunk.append(waiting.pop(0))
        split = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
        a = [token for sentence in chunk[:split] for token in sentence]
        b = [token for sentence in chunk[split:] for token in sentence]
        is_random_next = len(chunk) == 1 or rng.random() < 0.5
        if is_random_next:
            waiting = chunk[split:] + waiting
            b = random_segment(documents, number, target - len(a), rng)
        shorten(a, b, room, rng)
        instances.append(mask(a, b, is_random_next, predictions, share, whole_words, vocab, rng))
    return instances


def random_segment(documents, not_this, wanted, rng):
    other = rng.choice([number for number in range(len(documents)) if number != not_this])
    begin = rng.randrange(len(documents[other]))
    segment = []
    for sentence in documents[other][begin:]:
        segment += sentence
        if len(segment) >= wanted:
            break
    return segment


def shorten(a, b, room, rng):
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        del longer[0 if rng.random() < 0.5 else -1]


def mask(a, b, is_random_next, predictions, share, whole_words, vocab, rng):
    tokens = ["[CLS]"] + a + ["[SEP]"] + b + ["[SEP]"]
    words = []
    for begin, segment in [(1, a), (len(a) + 2, b)]:
        for index, token in enumerate(segment):
            if whole_words and token.startswith("##") and index > 0:
                words[-1].append(begin + index)
            else:
                words.append([begin + index])
    rng.shuffle(words)
    wanted = min(predictions, max(1, round(len(tokens) * share)))
    chosen = []
    for word in words:
        if len(chosen) + len(word) <= wanted:
            chosen += word
    found = []
    shown_tokens = list(tokens)
    for position in sorted(chosen):
        chance = rng.random()
        if chance < 0.8:
            shown = "[MASK]"
        elif chance < 0.9:
            shown = tokens[position]
        else:
            shown = rng.choice(vocab)
        found.append((position, tokens[position], shown))
        shown_tokens[position] = shown
    return Instance(a, b, is_random_next, shown_tokens, found)
