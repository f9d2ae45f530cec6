"""Writes parts with random records."""

import numpy as np

from records import ofrecord


def random_pretraining_features(generator, seq_length, max_predictions_per_seq, vocab_size):
    """Returns the features of a random pre-training record, with padding and unused predictions."""
    tokens = int(generator.integers(seq_length // 2, seq_length + 1))
    predictions = int(generator.integers(1, max_predictions_per_seq + 1))

    def padded(values, length, dtype=np.int32):
        return np.pad(np.asarray(values, dtype=dtype), (0, length - len(values)))

    return {
        "input_ids": padded(generator.integers(0, vocab_size, tokens), seq_length),
        "input_mask": padded(np.ones(tokens), seq_length),
        "segment_ids": padded(np.arange(tokens) >= tokens // 2, seq_length),
        "masked_lm_positions": padded(
            np.sort(generator.choice(tokens, predictions, replace=False)), max_predictions_per_seq
        ),
        "masked_lm_ids": padded(generator.integers(0, vocab_size, predictions), max_predictions_per_seq),
        "masked_lm_weights": padded(np.ones(predictions), max_predictions_per_seq, np.float32),
        "next_sentence_labels": generator.integers(0, 2, 1).astype(np.int32),
    }


def write_pretraining_part(path, count, seq_length=32, max_predictions_per_seq=5, vocab_size=200, seed=0):
    """Writes a part of random pre-training records and returns their features."""
    generator = np.random.default_rng(seed)
    records = [
        random_pretraining_features(generator, seq_length, max_predictions_per_seq, vocab_size) for _ in range(count)
    ]
    with ofrecord.open_writer(path) as write:
        for features in records:
            write(ofrecord.serialize(features))
    return records


def write_squad_parts(folder, count, parts=1, seq_length=32, vocab_size=200, seed=0, is_training=True):
    """Writes random SQuAD records to parts in contiguous blocks; for prediction, unique ids start at 1000000000."""
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    records = []
    for index in range(count):
        features = random_pretraining_features(generator, seq_length, 1, vocab_size)
        features = {name: features[name] for name in ("input_ids", "input_mask", "segment_ids")}
        if is_training:
            features["start_positions"], features["end_positions"] = generator.integers(
                0, seq_length // 2, (2, 1)
            ).astype(np.int32)
        else:
            features["unique_ids"] = np.array([1000000000 + index], dtype=np.int32)
        records.append(features)
    for part, block in enumerate(np.array_split(np.arange(count), parts)):
        with ofrecord.open_writer(folder / f"part-{part}") as write:
            for index in block:
                write(ofrecord.serialize(records[index]))
    return records


def write_classifier_part(path, labels, seq_length=32, vocab_size=200, seed=0, padding=()):
    """Writes random records with the given labels and returns their features; `padding`: not real examples."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(exist_ok=True)
    records = []
    for index, label in enumerate(labels):
        features = random_pretraining_features(generator, seq_length, 1, vocab_size)
        features = {name: features[name] for name in ("input_ids", "input_mask", "segment_ids")}
        features["label_ids"] = np.array([label], np.int32 if isinstance(label, int) else np.float32)
        features["is_real_example"] = np.array([index not in padding], np.int32)
        records.append(features)
    with ofrecord.open_writer(path) as write:
        for features in records:
            write(ofrecord.serialize(features))
    return records
