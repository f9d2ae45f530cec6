"""TFRecord files written by TensorFlow, for tests to convert."""

import tensorflow as tf

from records import ofrecord


def serialize_example(features):
    """Serializes `features` (name -> array of integers or floats) as a tf.train.Example."""
    message = tf.train.Example()
    for name, values in features.items():
        if values.dtype.kind == "f":
            message.features.feature[name].float_list.value.extend(values.tolist())
        else:
            message.features.feature[name].int64_list.value.extend(values.tolist())
    return message.SerializeToString()


def write_tfrecord(path, serialized, compression=None):
    """Writes serialized records as a TFRecord file; `compression` is None or "GZIP"."""
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in serialized:
            writer.write(record)


def write_tfrecord_of_part(part, path):
    """Writes the instances of the OFRecord file `part` as a TFRecord file, as google-research/bert would."""
    write_tfrecord(path, (serialize_example(features) for _, features in ofrecord.read(part)))
