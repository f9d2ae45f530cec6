"""Every file that users give, damaged in every way: a script ends well, or says in one line what is wrong where.

Never a traceback, a crash, a hang, memory beyond a bound, or a file outside of the output folder: see fuzzing.py. Here
a few cases each; `make fuzz` tries as many as one likes (FUZZ_CASES).
"""

import json
import os
import runpy
import shutil
import struct
from unittest import mock

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import ask
import config
import convert_hf
import convert_tf_ckpt_to_of
import create_pretraining_data
import create_squad_data
import extract_features
import fill_mask
import hard_text
import hugging_face_folders
import npy2json
import small_models
import squad_questions
import squad_results
import tf_checkpoints
import tfrecord_to_ofrecord
import train_vocab
import verify_snapshot
from fuzzing import Victim, changed_json, changes, fuzz, json_values, replace
from in_process import run_in_process
from inference import loaded
from made_parts import write_pretraining_part
from records import checks, description, ofrecord, tfrecord
from running import ROOT
from snapshots import layout
from tfrecord_files import serialize_example, write_tfrecord

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def no_disk():
    """Waiting for the disk would take most of the time, and the disk is not what is tested here."""
    with mock.patch.object(os, "fsync", lambda descriptor: None):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that makes a new folder."""
    return lambda: tmp_path_factory.mktemp("template")


# ---- OFRecord parts

PRETRAINING = {"seq_length": 32, "max_predictions_per_seq": 5, "vocab_size": 200}


def check_pretraining_data():
    args = config.parse_pretraining_args()
    checks.check_data_set(args, checks.pretraining_fields(args), shuffle=True)


def pretraining_flags(folder):
    flags = {**PRETRAINING, "data_dir": folder, "data_part_num": 2, "model_save_dir": folder / "output"}
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.fixture(scope="module")
def parts(folders):
    folder = folders()
    for part in range(2):
        write_pretraining_part(folder / f"part-{part}", 3, seed=part)
    return folder


@pytest.fixture(scope="module")
def part_victims(parts):
    def victim(*more):
        return Victim(
            check_pretraining_data, "run_pretraining.py", parts, lambda folder: [*pretraining_flags(folder), *more]
        )

    return [victim(), victim("--check_data")]


@fuzz
@given(changes=changes(), number=st.integers(0, 1))
def test_parts(part_victims, changes, number):
    part_victims[number].suffers(changes)


# Numbers of every type and size, some fields as they should be, in a record that is none or hangs over.
values = st.one_of(
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=40).map(lambda values: np.array(values, np.int32)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40).map(lambda values: np.array(values, np.int64)),
    st.lists(st.floats(width=32), max_size=40).map(lambda values: np.array(values, np.float32)),
    st.sampled_from([5, 32]).map(lambda length: np.ones(length, np.int32)),
)
PRETRAINING_NAMES = list(checks.pretraining_fields(config.parse_pretraining_args(["--data_dir=x"])))


@fuzz
@given(
    features=st.dictionaries(st.sampled_from(PRETRAINING_NAMES) | st.text(max_size=5), values, max_size=8),
    tail=st.binary(max_size=20),
    number=st.integers(0, 1),
)
def test_records(part_victims, features, tail, number):
    victim = part_victims[number]
    with victim.copy() as folder:
        good = next(ofrecord.read(folder / "part-1"))[1]
        others = {name: array for name, array in features.items() if name.isprintable()}
        found = [ofrecord.serialize({**good, **others}), ofrecord.serialize(others) + tail]
        replace(folder / "part-1", b"".join(struct.pack("<Q", len(record)) + record for record in found))
        victim.check(folder, {folder / "part-1"})


# ---- snapshots


@pytest.fixture(scope="module")
def model_snapshot(folders):
    table = hugging_face_folders.MODELS["BertForPreTraining"]
    variables = hugging_face_folders.as_variables(hugging_face_folders.random_tensors(table), table)
    folder = folders()
    with layout.open_writer(folder / "model") as write:
        for name, array in variables.items():
            write(name, array)
        write("bert-embeddings-word_embeddings-m", variables["bert-embeddings-word_embeddings"])
        write("System-Train-TrainStep-PretrainJob", np.array([3]))
    return folder


@pytest.fixture(scope="module")
def snapshot_victims(model_snapshot, folders):
    def export(folder):
        return ["export", f"--snapshot_dir={folder}/model", f"--hf_dump_path={folder}/output/hf"]

    unverified = folders()
    shutil.copytree(model_snapshot, unverified, dirs_exist_ok=True)
    for path in unverified.rglob("sha256"):
        path.unlink()
    (unverified / "model/snapshot_done").write_text("")
    with_config = folders()
    shutil.copytree(model_snapshot, with_config, dirs_exist_ok=True)
    (with_config / "config.json").write_text(json.dumps(hugging_face_folders.CONFIG))
    (with_config / "vocab.txt").write_text("\n".join(list(hard_text.VOCAB)[:50]))
    of_model = [f"model/{path.parent.name}/{path.name}" for path in model_snapshot.glob("model/bert-emb*/*")]
    return [
        Victim(verify_snapshot.main, "verify_snapshot.py", model_snapshot, lambda folder: [folder / "model"]),
        Victim(
            convert_hf.main,
            "convert_hf.py",
            model_snapshot,
            lambda folder: [*export(folder), "--num_attention_heads=4"],
            ["model/snapshot_done", *of_model],
        ),
        Victim(
            convert_hf.main,
            "convert_hf.py",
            unverified,
            lambda folder: [*export(folder), "--num_attention_heads=4"],
        ),
        Victim(
            convert_hf.main,
            "convert_hf.py",
            with_config,
            lambda folder: [
                *export(folder),
                f"--bert_config_file={folder}/config.json",
                f"--vocab_file={folder}/vocab.txt",
            ],
            ["config.json", "vocab.txt", *of_model],
        ),
    ]


@fuzz
@given(changes=changes(), number=st.integers(0, 3))
def test_snapshots(snapshot_victims, changes, number):
    snapshot_victims[number].suffers(changes)


@fuzz
@given(
    dims=st.lists(st.sampled_from([0, 1, 16, 50, 2**31, 2**32, 2**62, 2**63, 2**64, 10**400]), max_size=70),
    dtype=st.sampled_from(["kFloat", "kDouble", "kInt64", "kChar", "7", ""]),
)
def test_meta(snapshot_victims, dims, dtype):
    victim = snapshot_victims[2]
    with victim.copy() as folder:
        path = folder / "model/bert-embeddings-word_embeddings/meta"
        replace(path, f"shape {{ {' '.join(f'dim: {size}' for size in dims)} }} data_type: {dtype}")
        victim.check(folder, {path})


# ---- what npy2json.py reads


@pytest.fixture(scope="module")
def squad_folder(folders):
    folder = folders()
    content = squad_questions.one_paragraph(
        "The old lighthouse stood on the straße.",
        ("Which house?", "lighthouse", 8),
        ("Where?", "straße", 32),
    )
    squad_results.write_inputs(folder, content, squad_results.make_results(content, seed=0, ties=False))
    predictions = {"q0": "lighthouse", "q1": "the straße"}
    (folder / "predictions.json").write_text(json.dumps(predictions))
    (folder / "bert_config.json").write_text(json.dumps({"vocab_size": 300, "max_position_embeddings": 50}))
    return folder


def npy2json_flags(folder):
    inputs = {
        "predict_file": folder / "dev.json",
        "vocab_file": folder / "vocab.txt",
        "all_results_file": folder / "all_results.npy",
        "bert_config_file": folder / "bert_config.json",
        "output_dir": folder / "output/answers",
    }
    return [f"--{name}={value}" for name, value in {**inputs, **squad_results.SETTINGS}.items()]


def squad_data_flags(folder, is_training):
    flags = {
        "input_file": folder / "dev.json",
        "vocab_file": folder / "vocab.txt",
        "output_dir": folder / "output/parts",
        "is_training": is_training,
        **{name: squad_results.SETTINGS[name] for name in ("max_seq_length", "doc_stride", "max_query_length")},
    }
    return [f"--{name}={value}" for name, value in flags.items()]


@pytest.fixture(scope="module")
def squad_victims(squad_folder):
    evaluated = ["dev.json", "predictions.json"]
    return [
        Victim(
            npy2json.main,
            "npy2json.py",
            squad_folder,
            npy2json_flags,
            ["all_results.npy", "all_results.npy", "dev.json", "vocab.txt", "bert_config.json"],
        ),
        Victim(
            create_squad_data.main,
            "create_squad_data.py",
            squad_folder,
            lambda folder: squad_data_flags(folder, True),
            ["dev.json", "vocab.txt"],
        ),
        Victim(
            create_squad_data.main,
            "create_squad_data.py",
            squad_folder,
            lambda folder: squad_data_flags(folder, False),
            ["dev.json", "vocab.txt"],
        ),
        Victim(
            runpy.run_path(str(ROOT / "evaluate-v1.1.py"))["main"],
            "evaluate-v1.1.py",
            squad_folder,
            lambda folder: [folder / name for name in evaluated],
            evaluated,
        ),
    ]


@fuzz
@given(changes=changes(), number=st.integers(0, 3))
def test_squad(squad_victims, changes, number):
    squad_victims[number].suffers(changes)


@fuzz
@given(data=st.data(), number=st.integers(0, 3), name=st.sampled_from(["dev.json", "predictions.json"]))
def test_json(squad_victims, data, number, name):
    victim = squad_victims[number]
    with victim.copy() as folder:
        path = folder / name
        replace(path, json.dumps(data.draw(changed_json(json.loads(path.read_text())))))
        victim.check(folder, {path, folder / "all_results.npy"})


NPY_DTYPES = ["<i8", ">i8", "|O", "|S5", "<M8[D]", "|V8", "<f4", "<c16"]


@fuzz
@given(
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (9, 9)]),
    fields=st.lists(
        st.tuples(
            st.sampled_from(["unique_id", "start_logits", "end_logits", "x", ""]),
            st.sampled_from(NPY_DTYPES),
            st.lists(st.sampled_from([0, 1, 24, -1, 2**31, 2**62, 2**63]), max_size=3).map(tuple),
        ),
        max_size=4,
    ),
    shape=st.lists(st.sampled_from([0, 1, 2, 24, -1, 2**31, 2**62, 2**63, 2**64]), max_size=40).map(tuple),
    order=st.sampled_from([True, False, None, "x"]),
    length=st.none() | st.integers(0, 2**32 - 1),
)
def test_npy(squad_victims, version, fields, shape, order, length):
    header = repr({"descr": fields, "fortran_order": order, "shape": shape}).encode()
    length = len(header) if length is None else length
    packed = length.to_bytes(4, "little") if version[0] > 1 else (length % 65536).to_bytes(2, "little")
    victim = squad_victims[0]
    with victim.copy() as folder:
        path = folder / "all_results.npy"
        replace(path, b"\x93NUMPY" + bytes(version) + packed + header + path.read_bytes()[128:])
        victim.check(folder, {path})


# ---- what the tools that use a model read before they load it


@pytest.fixture(scope="module")
def model_victims(folders):
    folder = folders()
    small_models.write_snapshot(folder / "model", small_models.values(["squad", "masked_lm"]))
    (folder / "text.txt").write_text("the old house ||| a light\nlighthouse\n")
    described = "model/bert-embeddings-word_embeddings"
    files = [f"{described}/{name}" for name in ("bert_config.json", "vocab.txt", "tokenizer_config.json", "meta")]

    def victim(tool, *arguments):
        def main():
            with mock.patch.object(loaded, "run_with_engine", lambda function, model: 0):
                return tool.main()

        return Victim(
            main,
            f"{tool.__name__}.py",
            folder,
            lambda folder: [f"--model_load_dir={folder}/model", *(text.format(folder) for text in arguments)],
            [*files, *(["text.txt"] if "{}/text.txt" in "".join(arguments) else [])],
        )

    return [
        victim(ask, "--question=Where?", "--context_file={}/text.txt", "--max_query_length=9"),
        victim(fill_mask, "the [MASK] house"),
        victim(extract_features, "--input_file={}/text.txt", "--output_file={}/output/features", "--pooling=mean"),
    ]


@fuzz
@given(changes=changes(), number=st.integers(0, 2))
def test_models_and_texts(model_victims, changes, number):
    model_victims[number].suffers(changes)


# ---- text and vocabularies


@pytest.fixture(scope="module")
def text_victims(folders):
    folder = folders()
    text = "\n".join((ROOT / "dataset/corpus.txt").read_text().splitlines()[:60])
    (folder / "text.txt").write_text(text)
    shutil.copy(ROOT / "dataset/vocab.txt", folder)
    return [
        Victim(
            create_pretraining_data.main,
            "create_pretraining_data.py",
            folder,
            lambda folder: [
                f"--input_file={folder}/text.txt",
                f"--vocab_file={folder}/vocab.txt",
                f"--output_dir={folder}/output/parts",
                *("--workers=1", "--part_num=1", "--dupe_factor=1", "--max_seq_length=32"),
            ],
        ),
        Victim(
            train_vocab.main,
            "train_vocab.py",
            folder,
            lambda folder: [
                f"--input_file={folder}/text.txt",
                f"--vocab_file={folder}/output/vocab.txt",
                "--vocab_size=200",
            ],
            ["text.txt"],
        ),
    ]


@fuzz
@given(changes=changes(), number=st.integers(0, 1))
def test_text(text_victims, changes, number):
    text_victims[number].suffers(changes)


# ---- the settings beside parts, which tell whether more parts may be added to them

SETTINGS = f"parts/{description.FILE}"


@pytest.fixture(scope="module")
def settings_victim(folders, text_victims):
    """A script that finds all parts there already, so that it has nothing to write."""
    folder = folders()
    flags = [f"--vocab_file={ROOT}/dataset/vocab.txt", "--workers=1", "--dupe_factor=1", "--max_seq_length=32"]

    def arguments(folder):
        return [f"--input_file={folder}/text.txt", f"--output_dir={folder}/parts", *flags]

    shutil.copy(text_victims[0].template / "text.txt", folder)
    assert (
        run_in_process(create_pretraining_data.main, "create_pretraining_data.py", *arguments(folder)).returncode == 0
    )
    return Victim(create_pretraining_data.main, "create_pretraining_data.py", folder, arguments, [SETTINGS])


@fuzz
@given(changes=changes())
def test_settings(settings_victim, changes):
    settings_victim.suffers(changes)


@fuzz
@given(data=st.data())
def test_settings_of_other_content(settings_victim, data):
    with settings_victim.copy() as folder:
        content = json.loads((folder / SETTINGS).read_text())
        replace(folder / SETTINGS, json.dumps(data.draw(changed_json(content))))
        settings_victim.check(folder, {folder / SETTINGS})


@fuzz
@given(data=st.data(), number=st.sampled_from([0, 1]))
def test_configurations_of_other_content(hugging_face_victims, squad_victims, data, number):
    """Of the models that are imported, and of the one that has predicted."""
    victim, name = ((hugging_face_victims[0], "config.json"), (squad_victims[0], "bert_config.json"))[number]
    with victim.copy() as folder:
        replace(folder / name, json.dumps(data.draw(changed_json(json.loads((folder / name).read_text())))))
        victim.check(folder, {folder / name})


# ---- TFRecord files


@pytest.fixture(scope="module")
def tfrecord_victim(folders):
    folder = folders()
    features = write_pretraining_part(folder / "part-0", 4)
    (folder / "part-0").unlink()
    write_tfrecord(folder / "a.tfrecord", map(serialize_example, features))
    write_tfrecord(folder / "b.tfrecord", map(serialize_example, features), "GZIP")
    return Victim(
        tfrecord_to_ofrecord.main,
        "tfrecord_to_ofrecord.py",
        folder,
        lambda folder: [
            *("--input_file", folder / "a.tfrecord", folder / "b.tfrecord", "--output_dir", folder / "output/parts"),
            *("--workers", "1"),
        ],
    )


@fuzz
@given(changes=changes())
def test_tfrecords(tfrecord_victim, changes):
    tfrecord_victim.suffers(changes)


@fuzz
@given(
    features=st.dictionaries(st.text(max_size=5), values, max_size=4),
    damage=changes(),
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_tfrecords_with_checksums_that_are_right(tfrecord_victim, features, damage, length):
    """What stands in the records may be anything all the same."""
    with tfrecord_victim.copy() as folder:
        path = folder / "a.tfrecord"
        data = serialize_example({name: array for name, array in features.items() if name.isprintable()})
        for change in damage:
            at = int(change.place * len(data))
            data = data[:at] + change.data[:1000] + data[at + change.size % 3 :]
        size = len(data) if length is None else length
        head = struct.pack("<Q", size)
        replace(
            path,
            head
            + struct.pack("<I", tfrecord.masked_crc(head))
            + data
            + struct.pack("<I", tfrecord.masked_crc(data))
            + path.read_bytes(),
        )
        tfrecord_victim.check(folder, {path, folder / "b.tfrecord"})


# ---- models from elsewhere


@pytest.fixture(scope="module")
def hugging_face_victims(folders):
    def importing(folder):
        return [
            *("import", f"--hf_dir={folder}", f"--of_dump_path={folder}/output/of"),
            f"--vocab_dump_path={folder}/output/vocab.txt",
        ]

    whole, shards = folders() / "whole", folders() / "shards"
    tensors = hugging_face_folders.random_tensors(hugging_face_folders.ENCODER)
    hugging_face_folders.write_hf_folder(whole, tensors)
    hugging_face_folders.write_shards(shards, tensors)
    for folder in (whole, shards):
        (folder / "vocab.txt").write_text("\n".join(list(hard_text.VOCAB)[:50]))
    tokenizer = folders() / "tokenizer"
    hugging_face_folders.write_hf_folder(tokenizer, tensors)
    model = tokenizers.models.WordPiece({piece: index for index, piece in enumerate("abcd")}, unk_token="a")
    tokenizers.Tokenizer(model).save(str(tokenizer / "tokenizer.json"))
    return [
        Victim(
            convert_hf.main,
            "convert_hf.py",
            whole,
            importing,
            ["config.json", "vocab.txt", *["model.safetensors"] * 3],
        ),
        Victim(convert_hf.main, "convert_hf.py", shards, importing),
        Victim(convert_hf.main, "convert_hf.py", tokenizer, importing, ["tokenizer.json"]),
    ]


@fuzz
@given(changes=changes(), number=st.integers(0, 2))
def test_hugging_face_models(hugging_face_victims, changes, number):
    hugging_face_victims[number].suffers(changes)


NAMES = (
    st.sampled_from(["../../escaped", "/etc/passwd", "bert.encoder.layer.0.output.dense.weight", "a\x00b", "."])
    | st.text()
)


@fuzz
@given(
    entries=st.dictionaries(
        NAMES,
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F64", "I64", "BOOL", "F8_E4M3", "BF16", "X", ""]),
                "shape": st.lists(st.sampled_from([0, 1, 16, 2**31, 2**62, 2**64, -1]), max_size=4),
                "data_offsets": st.lists(
                    st.sampled_from([0, 4, 1024, 2**40, 2**63, 2**64, -1]), min_size=1, max_size=3
                ),
            }
        )
        | json_values,
        max_size=3,
    ),
    keeps=st.booleans(),
    length=st.none() | st.sampled_from([0, 1, 2**31, 2**62, 2**63, 2**64 - 1]),
)
def test_safetensors_headers(hugging_face_victims, entries, keeps, length):
    victim = hugging_face_victims[0]
    with victim.copy() as folder:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.dumps((json.loads(content[8 : 8 + size]) if keeps else {}) | entries).encode()
        length = len(header) if length is None else length
        replace(path, length.to_bytes(8, "little") + header + content[8 + size :])
        victim.check(folder, {path})


@fuzz
@given(data=st.data(), name=st.sampled_from(["config.json", "model.safetensors.index.json", "tokenizer.json"]))
def test_configurations(hugging_face_victims, data, name):
    victim = hugging_face_victims[2 if name == "tokenizer.json" else 1]
    with victim.copy() as folder:
        path = folder / name
        replace(path, json.dumps(data.draw(changed_json(json.loads(path.read_text())))))
        victim.check(folder, {path, folder / "vocab.txt"})


@pytest.fixture(scope="module")
def checkpoint_victim(folders):
    folder = folders()
    values = tf_checkpoints.random_values(tf_checkpoints.bert_variables_of())
    tf_checkpoints.save_checkpoint(folder / "model/bert_model.ckpt", values)
    (folder / "model/bert_config.json").write_text(
        json.dumps({**tf_checkpoints.CONFIG, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1})
    )
    return Victim(
        convert_tf_ckpt_to_of.main,
        "convert_tf_ckpt_to_of.py",
        folder,
        lambda folder: [f"--tf_checkpoint_path={folder}/model", f"--of_dump_path={folder}/output/of"],
        [f"model/{name}" for name in ("checkpoint", "bert_config.json", "bert_model.ckpt.index")]
        + ["model/bert_model.ckpt.index", "model/bert_model.ckpt.data-00000-of-00001"],
    )


@fuzz
@given(changes=changes())
def test_checkpoints(checkpoint_victim, changes):
    checkpoint_victim.suffers(changes)


# ---- flags

FLAG_VALUES = st.one_of(
    st.text(max_size=20).filter(lambda text: "\x00" not in text),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["1e400", "9" * 5000, "-", "--", "\u0663", "0x10", "1_000", "\udcff", "True", " 1 ", "١"]),
)
PARSERS = [config.parse_pretraining_args, config.parse_squad_args, config.parse_squad_predict_args]


@fuzz
@given(data=st.data(), number=st.integers(0, 2))
def test_flags(data, number):
    base = ["--data_dir=x", "--model_load_dir=y"]
    names = sorted(vars(PARSERS[number](base)))
    flags = data.draw(st.lists(st.tuples(st.sampled_from(names), FLAG_VALUES), min_size=1, max_size=3))

    def main():
        config.print_args(PARSERS[number]())

    result = run_in_process(main, "run.py", *base, *(f"--{name}={value}" for name, value in flags))
    assert result.returncode in (0, 2)
    if result.returncode:
        assert len(result.stderr.splitlines()) == 1 and "--" in result.stderr, result.stderr
