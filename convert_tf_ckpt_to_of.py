"""Converts a TensorFlow checkpoint of BERT, published by Google or trained with google-research/bert, to a snapshot.

    python convert_tf_ckpt_to_of.py --tf_checkpoint_path ./uncased_L-12_H-768_A-12 --of_dump_path ./bert-oneflow

Variables keep their names, with `/` as `-` and `kernel` as `weight`; Adam's moments `adam_m` and `adam_v` become `-m`
and `-v`. The training step is dropped, so a run from the snapshot starts its schedule at 0.
"""

from system import import_errors  # noqa: F401

# isort: split

import collections
import glob
import math
import os
import re
from pathlib import Path, PureWindowsPath

import numpy as np
from google.protobuf import text_encoding

from snapshots import layout, model_files, variables
from system.command_line import ArgumentParser, add_bool
from system.errors import UserError, one_line
from system.input_files import open_input, reading
from system.output_files import check_replaceable
from system.progress import progress_bar
from text.tokenization import read_vocab
from util import run_script

# Slots of google-research/bert's AdamWeightDecayOptimizer.
_MOMENTS = {"adam_m": "m", "adam_v": "v"}

# The head of run_squad.py has weights [2, hidden]; a snapshot has a regular dense layer, [hidden, 2].
_SQUAD_WEIGHTS = "cls/squad/output_weights"
_WORD_EMBEDDINGS = "embeddings/word_embeddings"
_SQUAD_HEAD = {_SQUAD_WEIGHTS: "cls-squad-output-weight", "cls/squad/output_bias": "cls-squad-output-bias"}

_LARGEST_STATE_FILE = 1 << 20  # characters; it names a few files
_TF2_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")


def parse_arguments():
    parser = ArgumentParser(description="Convert a TensorFlow checkpoint of BERT to a snapshot.")
    parser.add_argument(
        "--tf_checkpoint_path",
        required=True,
        metavar="PATH",
        help="folder of the checkpoint, or its prefix (such as bert_model.ckpt); bert_config.json and vocab.txt in "
        "that folder are copied to the snapshot",
    )
    parser.add_argument("--of_dump_path", required=True, metavar="DIR", help="folder of the snapshot to write")
    add_bool(parser, "--overwrite", help="replace a snapshot that exists at --of_dump_path")
    add_bool(
        parser,
        "--do_lower_case",
        None,
        "the model is uncased; recorded in the snapshot (default: by the folder's name, if it is one of Google's)",
    )
    return parser.parse_args()


def find_checkpoint(path):
    """Returns the prefix of the checkpoint at `path`, which is a folder or a prefix.

    In a folder, returns the checkpoint that the file `checkpoint` names, or the only one if there is no such file.
    Raises UserError if there is none, or several without a file `checkpoint`.
    """
    path = Path(path)
    if path.is_dir():
        return _find_in_folder(path)
    # The shell completes to one of the checkpoint's files, not to their common prefix.
    prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", str(path)))
    if not _is_checkpoint(prefix):
        raise UserError(f"{path}: there is no checkpoint: no such folder, and no file {prefix}.index")
    return prefix


def _find_in_folder(folder):
    state_file = folder / "checkpoint"
    if state_file.exists():
        with reading(state_file), open_input(state_file) as file:
            text = file.read(_LARGEST_STATE_FILE)
        named = _named_checkpoint(text)
        if named is None:
            raise UserError(f'{state_file}: has no line model_checkpoint_path: "..."; correct it or remove it')
        for prefix in _places_of(named, folder):
            if _is_checkpoint(prefix):
                return prefix
        missing = _places_of(named, folder)[-1]
        raise UserError(f"{state_file}: names the checkpoint {named}, but there is no {missing}.index")
    found = sorted(folder.glob("*.index"))
    advice = None if found else layout.advice_for_other_models(folder)
    if advice:
        raise UserError(f"{folder}: {advice}")
    if len(found) != 1:
        names = f"several ({', '.join(file.stem for file in found[:5])})" if found else "none (no file *.index)"
        raise UserError(f"{folder}: expected one checkpoint, found {names}; give the checkpoint's prefix")
    return found[0].with_suffix("")


def _named_checkpoint(text):
    """Returns the path in the `text` of a file `checkpoint`, or None if it has none or invalid escapes.

    The file is a text protobuf: non-ASCII characters are escaped. The backslashes of Windows may be.
    """
    match = re.search(r'^\s*model_checkpoint_path\s*:\s*"([^"]+)"', text, re.MULTILINE)
    if match is None:
        return None
    if re.match(r"[A-Za-z]:\\[^\\]", match[1]):
        return match[1]
    try:
        return os.fsdecode(text_encoding.CUnescape(match[1]))
    except ValueError:
        return None


def _places_of(named, folder):
    """Returns the possible prefixes of the checkpoint `named` by a file in `folder`, the most likely one first.

    The folder may have been moved or copied, even from Windows, so an absolute path is looked up in `folder` first.
    """
    if re.match(r"[A-Za-z]:[\\/]|\\\\", named):
        return [folder / PureWindowsPath(named).name]
    path = Path(named)
    if path.is_absolute():
        return [folder / path.name, path]
    return [folder / PureWindowsPath(named), folder / path]


def _is_checkpoint(prefix):
    return os.path.isfile(f"{prefix}.index")


def open_checkpoint(prefix):
    """Returns TensorFlow's reader of the name-based checkpoint at `prefix`.

    Raises UserError if it is damaged, is a TensorFlow 2 object-based checkpoint, or TensorFlow cannot be imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hides its messages about the processor
    try:
        import tensorflow as tf
    except ImportError as error:
        raise UserError(
            f"TensorFlow, which reads checkpoints, cannot be imported ({error}): pip install -r requirements.txt"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(f"{prefix}: damaged or not a checkpoint: {_reason(error)}") from None
    if reader.has_tensor(_TF2_OBJECT_GRAPH):
        raise UserError(
            f"{prefix}: a TensorFlow 2 object-based checkpoint, whose variables have no names; convert the "
            "TensorFlow 1 release of the model, or its Hugging Face version with tools/convert_hf.py"
        )
    return reader


def read_variable(reader, name, prefix):
    """Returns the array of the variable `name`, with its dtype in the checkpoint. Raises UserError if unreadable."""
    import tensorflow as tf

    try:
        return reader.get_tensor(name)
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise UserError(f"{prefix}: variable {name} cannot be read: {_reason(error)}") from None


def _reason(error):
    return getattr(error, "message", None) or str(error)


def skip_reason(name, shape, dtype, names):
    """Returns why the variable `name` is not converted, or None if it is. `names`: all names in the checkpoint."""
    parent, _, last = name.rpartition("/")
    if name == "global_step":
        return "the training step: a run from the snapshot starts its schedule at 0"
    if not dtype.is_floating:
        return f"of type {dtype.name}, so not a weight"
    if not shape:
        return "a scalar: training state, not a weight"
    if parent in names and last not in _MOMENTS:
        return "state of an optimiser other than Adam"
    return None


def snapshot_name(name):
    """Returns the snapshot's name of the TensorFlow variable `name`."""
    parent, _, last = name.rpartition("/")
    weight = parent if last in _MOMENTS else name
    suffix = f"-{_MOMENTS[last]}" if last in _MOMENTS else ""
    return _SQUAD_HEAD.get(weight, re.sub(r"/kernel$", "/weight", weight).replace("/", "-")) + suffix


def plan_conversion(shapes, dtypes, prefix):
    """Returns (name -> name in the snapshot, name -> why it is skipped) for the variables of the checkpoint.

    Checkpoints are untrusted: raises UserError if a name cannot be a folder's, or if two names become the same.
    """
    targets, skipped, source_of = {}, {}, {}
    # Strip the prefix of a wrapper module; a bare encoder has no `bert/`.
    wrapper = variables.name_in_wrapper(shapes, "/", _WORD_EMBEDDINGS)
    backbone = "bert/" if wrapper + _WORD_EMBEDDINGS in shapes else ""
    for name in sorted(shapes):
        reason = skip_reason(name, shapes[name], dtypes[name], shapes)
        if reason:
            skipped[name] = reason
            continue
        target = snapshot_name(backbone + name.removeprefix(wrapper))
        is_path = not {"", ".", ".."}.isdisjoint(name.split("/"))
        if is_path or not _SAFE_NAME.fullmatch(target) or target == layout.DONE_FILE:
            raise UserError(f"{prefix}: the name of variable {name!r:.100} cannot become the name of a folder")
        if target in source_of:
            raise UserError(f"{prefix}: the variables {source_of[target]} and {name} would both become {target}")
        targets[name] = target
        source_of[target] = name
    return targets, skipped


def is_transposed(target):
    """Whether the variable `target` of a snapshot is transposed in a checkpoint."""
    return re.sub(r"-[mv]$", "", target) == _SQUAD_HEAD[_SQUAD_WEIGHTS]


def check_data_size(shapes, dtypes, prefix):
    """Raises UserError if the checkpoint's data files are smaller than its index says."""
    needed = sum(
        math.prod(shape) * dtypes[name].size
        for name, shape in shapes.items()
        if dtypes[name].is_floating or dtypes[name].is_integer
    )
    files = prefix.parent.glob(f"{glob.escape(prefix.name)}.data-*-of-*")
    available = sum(os.path.getsize(file) for file in files if os.path.isfile(file))
    if needed > available:
        raise UserError(
            f"{prefix}: truncated: its variables take {needed} bytes, but the data files ({prefix.name}.data-*) have "
            f"only {available}; copy or download them again"
        )


def summarise(names, skipped, shapes, dtypes, folder):
    """Returns lines that list what was converted, and what was skipped and why."""
    moments = [name for name in names if name.rpartition("/")[2] in _MOMENTS]
    parameters = sum(math.prod(shapes[name]) for name in names)
    including = f" (including {len(moments)} of Adam's moments)" if moments else ""
    lines = [
        f"converted {len(names)} variables{including}: {parameters:,} parameters, {4 * parameters:,} bytes, in {folder}"
    ]
    widened = collections.Counter(dtypes[name].name for name in names)
    lines += [f"stored as float32: {n} variables of {dtype}" for dtype, n in widened.items() if dtype != "float32"]
    names_by_reason = collections.defaultdict(list)
    for name, reason in skipped.items():
        names_by_reason[reason].append(name)
    for reason, group in names_by_reason.items():
        more = f" and {len(group) - 4} more" if len(group) > 4 else ""
        lines.append(one_line(f"skipped {', '.join(group[:4])}{more}: {reason}"))
    return lines


def files_of_model(folder, config, size, do_lower_case):
    """Returns the files that describe the model in its snapshot, name -> bytes, from the checkpoint's `folder`.

    `config`: the model's configuration, or None; `do_lower_case`: the flag's value, or None. Prints a notice if there
    is no configuration. Raises UserError if the vocabulary is too large for the variables.ModelSize `size`.
    """
    if config is None:
        print(
            f"{folder} has no bert_config.json, so the snapshot has none: runs that load it need --num_attention_heads."
        )
    vocab_file = folder / model_files.VOCAB_FILE
    vocab_data = None
    if vocab_file.is_file():
        num_pieces = max(read_vocab(vocab_file).values()) + 1
        if num_pieces > size.vocab_size:
            raise UserError(
                f"{vocab_file}: has {num_pieces} pieces, but the weights are of a model with {size.vocab_size}; "
                "replace it with the model's own, or move it away"
            )
        vocab_data = model_files.read_vocab_bytes(vocab_file)
    if do_lower_case is None:
        do_lower_case = case_by_name(folder.resolve().name)
    return model_files.encode(config, vocab_data, do_lower_case)


def case_by_name(name):
    """Returns do_lower_case by the folder's name if it is one of Google's (uncased_L-12_..., ...), else None."""
    if re.match(r"((wwm_)?uncased|multilingual|chinese)_L-", name):
        return True
    return False if re.match(r"((wwm_)?cased|multi_cased)_L-", name) else None


def main():
    arguments = parse_arguments()
    check_replaceable(arguments.of_dump_path, arguments.overwrite, layout.DONE_FILE)
    prefix = find_checkpoint(arguments.tf_checkpoint_path)
    config_file = prefix.parent / model_files.CONFIG_FILE
    config_size, config = variables.read_config(config_file) if config_file.exists() else (None, None)

    reader = open_checkpoint(prefix)
    shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    dtypes = reader.get_variable_to_dtype_map()
    check_data_size(shapes, dtypes, prefix)
    targets, skipped = plan_conversion(shapes, dtypes, prefix)
    size = variables.infer_size(
        {target: shapes[name][::-1] if is_transposed(target) else shapes[name] for name, target in targets.items()},
        prefix,
    )
    if config_size is not None:
        variables.check_config_fits(config_size, size, config_file)

    files = files_of_model(prefix.parent, config, size, arguments.do_lower_case)

    with layout.open_writer(os.path.realpath(arguments.of_dump_path)) as write:
        for name, target in progress_bar(targets.items(), unit=" variables"):
            array = read_variable(reader, name, prefix).astype(np.float32, copy=False)
            variables.check_finite(array, f"{prefix}: {name}")
            of_model = files if target == variables.WORD_EMBEDDINGS else None
            write(target, array.T if is_transposed(target) else array, of_model)
    print("\n".join(summarise(targets, skipped, shapes, dtypes, arguments.of_dump_path)))
    print(variables.describe_size(config_size or size))


if __name__ == "__main__":
    run_script(main)
