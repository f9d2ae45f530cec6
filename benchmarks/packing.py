"""Times SQuAD training and prediction with and without --skip_padding, in turns within one process.

For windows with the lengths of real ones and for full ones, prints the medians of a batch in seconds, their ratio, that
of processor seconds, which other processes disturb less, and the share of tokens among all positions.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_prediction import made_up_windows  # noqa: E402
from bench_side import VOCABULARY  # noqa: E402
from system.command_line import ArgumentParser, add_number, positive_int  # noqa: E402


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add_number(parser, "--num_hidden_layers", positive_int, 12, "layers of the model")
    add_number(parser, "--num_attention_heads", positive_int, 12, "heads of 64 units")
    add_number(parser, "--seq_length", positive_int, 384, "positions of a window")
    add_number(parser, "--batch_size", positive_int, 8, "windows in a batch")
    add_number(parser, "--turns", positive_int, 5, "timed batches of each side")
    add_number(parser, "--cpu_threads", positive_int, 1, "threads of the kernels")
    args = parser.parse_args()

    from engine import native, oneflow_loader

    oneflow_loader.load()
    native.set_thread_count(args.cpu_threads)
    print(native.describe())
    print(f"{'':24} {'padded s':>9} {'packed s':>9} {'ratio':>6} {'processor':>10} {'tokens':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for lengths in ("real", "full"):
            path = Path(folder) / lengths
            share = write_windows(path, lengths, args)
            for name, make_step in (("training", train_step), ("prediction", predict_step)):
                steps = []
                for packs in (False, True):
                    steps.append(make_step(path, packs, args))
                    steps[-1]()  # compiles it
                (padded, packed), (of_padded, of_packed) = time_in_turns(steps, args.turns)
                times = f"{padded:9.3f} {packed:9.3f} {packed / padded:6.2f} {of_packed / of_padded:10.2f}"
                print(f"{f'{name}, {lengths} windows':24} {times} {share:7.2f}", flush=True)


def write_windows(folder, lengths, args):
    """Writes a part of windows, which all batches read in the same order; returns the share of tokens in them."""
    from records import ofrecord

    windows = made_up_windows({"windows": args.batch_size * (args.turns + 1), "length": args.seq_length})
    if lengths == "full":
        windows["input_mask"][:] = 1
    ends = np.ones((len(windows["input_mask"]), 1), np.int64)
    windows |= {"start_positions": ends, "end_positions": ends, "unique_ids": np.arange(len(ends))[:, None]}
    folder.mkdir()
    with ofrecord.open_writer(folder / "part-0") as write:
        for record in ofrecord.serialize_batch({name: array.astype(np.int32) for name, array in windows.items()}):
            write(record)
    return windows["input_mask"][args.batch_size :].mean()


def train_step(folder, packs, args):
    """Returns a function that trains a model of its own on the next batch."""
    import config
    import squad

    model, loader = model_and_data(folder, "squad_train_fields", packs, args)
    job = squad.SquadFinetuneJob(model, loader, config.parse_squad_args([f"--data_dir={folder}", "--iter_num=100"]))
    return lambda: job()["total_loss"].numpy()


def predict_step(folder, packs, args):
    """Returns a function that predicts the next batch by a model of its own."""
    import squad

    job = squad.SquadPredictJob(*model_and_data(folder, "squad_predict_fields", packs, args))
    return lambda: [output.numpy() for output in job()]


def model_and_data(folder, fields, packs, args):
    """Returns (the model, a loader of the windows)."""
    import bert_util
    import squad
    from engine import operators
    from engine.oneflow_loader import flow
    from records import checks, loader

    operators.skip_padding(packs)
    placement = flow.placement("cpu", [0])
    heads, hidden = args.num_attention_heads, 64 * args.num_attention_heads
    config = bert_util.BertConfig(
        VOCABULARY, hidden, args.num_hidden_layers, heads, 4 * hidden, args.seq_length, 2, 0.1, 0.1
    )
    model = squad.BertForQuestionAnswering(config, bert_util.Initializer(placement, 0))
    known = argparse.Namespace(seq_length=args.seq_length, vocab_size=VOCABULARY, type_vocab_size=2)
    data_set = checks.DataSet([folder / "part-0"], getattr(checks, fields)(known), None)
    return model, loader.OFRecordLoader(data_set, args.batch_size, placement, shuffle=False, seed=0)


def time_in_turns(steps, turns):
    """Returns the median seconds of each step, and its median processor seconds."""
    seconds, processor_seconds = [[] for _ in steps], [[] for _ in steps]
    for _ in range(turns):
        for index, step in enumerate(steps):
            begin, processor_begin = time.perf_counter(), time.process_time()
            step()
            seconds[index].append(time.perf_counter() - begin)
            processor_seconds[index].append(time.process_time() - processor_begin)
    return [statistics.median(each) for each in seconds], [statistics.median(each) for each in processor_seconds]


if __name__ == "__main__":
    main()
