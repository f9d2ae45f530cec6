"""Compares the speed of tools/tfrecord_to_ofrecord.py with a simple TensorFlow loop on the same TFRecord file.

    python benchmarks/tfrecord_to_ofrecord.py [--records 50000] [--runs 3]

The records have the size of pre-training instances: 128 tokens, 20 predictions. The loop reads with tf.data, parses
tf.train.Example and serializes an OFRecord; both run in one process on one core, in turn, and write the same bytes. The
tool is timed from the start of its process to the end, the loop without loading TensorFlow. With two or more cores, the
tool is also timed with as many workers.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import tensorflow as tf  # noqa: E402

from made_parts import random_pretraining_features  # noqa: E402
from records import ofrecord  # noqa: E402
from tfrecord_files import serialize_example, write_tfrecord  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "in.tfrecord", arguments.records)
        loop, tool, parallel = [], [], []
        for _ in range(arguments.runs):
            os.sched_setaffinity(0, cores[-1:])
            loop.append(seconds_of(convert_with_tensorflow, folder / "in.tfrecord", folder / "loop"))
            tool.append(seconds_of(convert_with_tool, folder / "in.tfrecord", folder / "tool", 1))
            os.sched_setaffinity(0, cores)
            parallel.append(seconds_of(convert_with_tool, folder / "in.tfrecord", folder / "parallel", len(cores)))
        parts = {(folder / path / "part-0").read_bytes() for path in ("loop", "tool", "parallel")}
        assert len(parts) == 1, "the outputs differ"

    print(f"{arguments.records} records, median of {arguments.runs} runs")
    print("| | seconds | records a second | ratio |")
    print("| --- | --- | --- | --- |")
    reference = statistics.median(loop)
    for label, seconds in [
        ("loop with TensorFlow, one core", reference),
        ("tools/tfrecord_to_ofrecord.py, one core", statistics.median(tool)),
        (f"tools/tfrecord_to_ofrecord.py, --workers {len(cores)}", statistics.median(parallel)),
    ]:
        print(f"| {label} | {seconds:.2f} | {arguments.records / seconds:.0f} | {reference / seconds:.2f} |")


def write_input(path, count):
    """Writes a TFRecord file of `count` records: a thousand different ones, repeated."""
    generator = np.random.default_rng(0)
    records = [serialize_example(random_pretraining_features(generator, 128, 20, 30522)) for _ in range(1000)]
    write_tfrecord(path, (records[index % len(records)] for index in range(count)))


def seconds_of(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def convert_with_tensorflow(path, output_dir):
    """Converts with TensorFlow, one record after the other, as a script without the tool would."""
    output_dir.mkdir(exist_ok=True)
    with ofrecord.open_writer(output_dir / "part-0") as write:
        for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            record = ofrecord.OFRecord()
            for name, feature in tf.train.Example.FromString(data).features.feature.items():
                value = record.feature.add(key=name.encode()).value
                if feature.WhichOneof("kind") == "int64_list":
                    value.int32_list.value.extend(feature.int64_list.value)
                else:
                    value.float_list.value.extend(feature.float_list.value)
            write(record.SerializeToString())


def convert_with_tool(path, output_dir, workers):
    flags = [f"--input_file={path}", f"--output_dir={output_dir}", f"--workers={workers}", "--overwrite"]
    command = [sys.executable, str(ROOT / "tools" / "tfrecord_to_ofrecord.py"), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
