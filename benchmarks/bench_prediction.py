"""One side of the table `prediction` of bench.py: computes the logits of SQuAD windows and prints the times as JSON.

usage: bench_prediction.py SIDE '{"layers": 12, "batch": 8, "length": 384, "windows": 64, "steps": 5}'

A side whose name ends with `, sorted` sorts the windows by length and pads each batch to its longest. All sides compute
with random weights: Hugging Face's initial ones, exported to ONNX for ONNX Runtime and OpenVINO.
"""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench_side import HEADS, HIDDEN, POSITIONS, VOCABULARY, measure

# As Hugging Face names them.
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]

# Deciles of the window lengths in tokens (at most 384, stride 128) of 96 questions of SQuAD v1.1's development set,
# made by create_squad_data.py with BERT's vocabulary.
WINDOW_LENGTHS = (62, 75, 88, 116, 125, 140, 154, 172, 210, 263, 384)


def made_up_windows(size):
    """Returns the int64 features of size["windows"] windows by name, with random lengths from WINDOW_LENGTHS."""
    generator = np.random.default_rng(0)
    count, length = size["windows"], size["length"]
    lengths = np.interp(np.linspace(0, 10, count), np.arange(11), WINDOW_LENGTHS).astype(int)
    input_mask = (np.arange(length) < generator.permutation(lengths)[:, None]).astype(np.int64)
    input_ids = generator.integers(1000, VOCABULARY, (count, length)) * input_mask
    return {"input_ids": input_ids, "input_mask": input_mask, "segment_ids": input_mask * (np.arange(length) > 15)}


def this_project(size, bfloat16=False, int8=False, skips_padding=False):
    """Returns a function that predicts all windows like run_squad_predict.py and returns a logit."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import argparse

    from engine import native, oneflow_loader, operators
    from records import checks, ofrecord

    flow = oneflow_loader.load()
    import bert_util
    import squad
    from records import loader

    if bfloat16 and (obstacle := native.use_bfloat16(True)):
        raise SystemExit(f"no bfloat16: {obstacle}")
    placement = flow.placement("cpu", [0])
    config = bert_util.BertConfig(VOCABULARY, HIDDEN, size["layers"], HEADS, 4 * HIDDEN, POSITIONS, 2, 0.1, 0.1)
    model = squad.BertForQuestionAnswering(config, bert_util.Initializer(placement, 0))
    windows = {name: array.astype(np.int32) for name, array in made_up_windows(size).items()}
    windows["unique_ids"] = np.arange(size["windows"], dtype=np.int32)[:, None]
    folder = temporary_folder()
    with ofrecord.open_writer(folder / "part-0") as write:
        for record in ofrecord.serialize_batch(windows):
            write(record)
    args = argparse.Namespace(
        seq_length=size["length"], vocab_size=VOCABULARY, type_vocab_size=2, node_num=1, gpu_num_per_node=1,
        batch_size_per_device=size["batch"], iter_num=-(-size["windows"] // size["batch"]),
    )  # fmt: skip
    data_set = checks.DataSet([folder / "part-0"], checks.squad_predict_fields(args), size["windows"])
    operators.skip_padding(skips_padding)
    operators.use_int8(int8)
    loader = loader.OFRecordLoader(data_set, size["batch"], placement, shuffle=False, seed=0)
    job = squad.SquadPredictJob(model, loader)
    return lambda: squad.predict(job, args.iter_num, size["length"])["start_logits"][0, 0].item()


def products_alone(size):
    """The matrix products of the encoder for the windows without padding, batch by batch."""
    import products

    encoder = products.Encoder(size["layers"], HEADS, HIDDEN // HEADS, 4 * HIDDEN)
    lengths, batch = made_up_windows(size)["input_mask"].sum(axis=1).tolist(), size["batch"]

    def predict():
        for first in range(0, len(lengths), batch):
            encoder.multiply(lengths[first : first + batch])
        return 0.0

    return predict


def temporary_folder():
    """Returns a new folder, which is removed when the process ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    return Path(folder)


def predict_batches(predict, size, sorts):
    """Calls predict(input_ids, input_mask, segment_ids), int64 arrays [B, S], for each batch; returns a logit."""
    windows = made_up_windows(size)
    lengths = windows["input_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable") if sorts else np.arange(size["windows"])
    for first in range(0, size["windows"], size["batch"]):
        rows = order[first : first + size["batch"]]
        longest = lengths[rows].max() if sorts else size["length"]
        logits = predict(*(np.ascontiguousarray(array[rows, :longest]) for array in windows.values()))
    return float(logits[0, 0])


def question_answering_model(size):
    """Returns Hugging Face's BertForQuestionAnswering."""
    from transformers import BertConfig, BertForQuestionAnswering

    return BertForQuestionAnswering(BertConfig(num_hidden_layers=size["layers"])).eval()


def transformers(size, sorts=False, bfloat16=False, compiles=False):
    """Hugging Face's BertForQuestionAnswering; with `compiles` by torch.compile, its weights as constants."""
    import torch

    if compiles:
        os.environ["TORCHINDUCTOR_FREEZING"] = "1"
    model = question_answering_model(size)
    forward = torch.compile(model, dynamic=sorts) if compiles else model

    def predict(ids, mask, segments):
        ids, mask, segments = map(torch.from_numpy, (ids, mask, segments))
        with torch.inference_mode(not compiles), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, bfloat16):
            return forward(input_ids=ids, attention_mask=mask, token_type_ids=segments).start_logits

    return lambda: predict_batches(predict, size, sorts)


def exported_model(size):
    """Returns the path of the model in ONNX, with the fused operators of ONNX Runtime's BERT optimiser."""
    import torch
    from onnxruntime.transformers import optimizer

    example = torch.ones((2, 8), dtype=torch.int64)
    model = question_answering_model(size)
    model.set_attn_implementation("eager")
    path = temporary_folder() / "model.onnx"
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        model, (example,) * 3, path, input_names=INPUTS, output_names=["start_logits", "end_logits"],
        dynamic_axes={name: axes for name in (*INPUTS, "start_logits", "end_logits")}, dynamo=False,
    )  # fmt: skip
    optimised = optimizer.optimize_model(str(path), "bert", num_heads=HEADS, hidden_size=HIDDEN)
    fused = optimised.get_fused_operator_statistics()
    if fused["Attention"] != size["layers"] or fused["SkipLayerNormalization"] < 2 * size["layers"]:
        raise SystemExit(f"ONNX Runtime's optimiser has not fused the layers: {fused}")
    optimised.save_model_to_file(str(path))
    return path


def onnx_runtime(size, sorts=False, int8=False):
    """ONNX Runtime; with `int8` by its dynamic quantisation, a scale for each column of a weight."""
    import onnx
    import onnxruntime
    from onnxruntime import quantization

    path = exported_model(size)
    if int8:
        whole, path = path, path.with_name("int8.onnx")
        # The type of what the fused operators return is not inferred.
        options = {"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT}
        quantization.quantize_dynamic(whole, path, per_channel=True, extra_options=options)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def predict(ids, mask, segments):
        return session.run(["start_logits"], dict(zip(INPUTS, (ids, mask, segments), strict=True)))[0]

    return lambda: predict_batches(predict, size, sorts)


def openvino(size, sorts=False, bfloat16=False):
    """OpenVINO, for the least time of a batch; in float32 also where the processor has bfloat16, unless asked for."""
    import openvino
    import torch

    example = {
        name: torch.ones((2, 8), dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    converted = openvino.convert_model(question_answering_model(size), example_input=example)
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
    compiled = openvino.compile_model(converted, "CPU", hints)

    def predict(ids, mask, segments):
        return compiled(dict(zip(INPUTS, (ids, mask, segments), strict=True)))[0]

    return lambda: predict_batches(predict, size, sorts)


WITHOUT_SORTING: dict[str, Callable] = {
    "Transformers": transformers,
    "Transformers, bfloat16": functools.partial(transformers, bfloat16=True),
    "Transformers, compiled": functools.partial(transformers, compiles=True),
    "ONNX Runtime": onnx_runtime,
    "ONNX Runtime, int8": functools.partial(onnx_runtime, int8=True),
    "OpenVINO": openvino,
    "OpenVINO, bfloat16": functools.partial(openvino, bfloat16=True),
}
SIDES = {
    "this project": this_project,
    "this project, bfloat16": functools.partial(this_project, bfloat16=True),
    "this project, int8": functools.partial(this_project, int8=True),
    "this project, --skip_padding": functools.partial(this_project, skips_padding=True),
    "this project, int8, --skip_padding": functools.partial(this_project, int8=True, skips_padding=True),
    "matrix products alone": products_alone,
    **WITHOUT_SORTING,
    **{f"{name}, sorted": functools.partial(side, sorts=True) for name, side in WITHOUT_SORTING.items()},
}

if __name__ == "__main__":
    measure(SIDES)
