"""Runs every command of the README and the other pages, in order, in a copy of the repository, as it stands there.

A new command runs here without further ado, and fails here if it cannot. What is changed before a command runs is in
CHANGES, and what stands in for a program that is not at hand in _stand_ins(), with the reasons.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import namespaces
from pages import PAGES, Block, blocks_of
from running import ROOT, WITHOUT_FSYNC
from snapshots import layout, variables
from tfrecord_files import write_tfrecord_of_part

pytestmark = pytest.mark.slow


class Change(NamedTuple):
    """A text (a regular expression) in the commands under one heading, what takes its place, and why.

    Without a heading it is for all commands.
    """

    heading: str | None
    text: str
    replacement: str
    reason: str

    def concerns(self, block):
        """Whether a block stands under the heading."""
        return self.heading in (None, block.heading)


_TWO_LAYERS = "what layers compute has tests of its own; two take a sixth of the time"
_FEW_QUESTIONS = "the project's questions are fewer"
CHANGES = (
    Change(None, r"\bmake (?=\w)", "make -n MAKE=true ", "set-up has tests of its own, the rest takes hours"),
    Change(None, r"(benchmarks/\w+\.py).*", r"\1 --help", "they measure for minutes"),
    Change("Quick start", r"<address of this repository>", str(ROOT), "the reader's"),
    Change("Quick start", r"source \.venv", "source ../.venv", "make -n has not made one in the clone"),
    Change("Pre-training", r"tensorboard --logdir", "tensorboard --inspect --logdir", "it would serve for ever"),
    Change("From your own text", r"--iter_num=1000", "--iter_num=2", "time"),
    Change("From your own text", r"--batch_size_per_device=16", "--batch_size_per_device=1", "time"),
    Change("Fine-tuning on SQuAD", r"--num_hidden_layers=12", "--num_hidden_layers=2", _TWO_LAYERS),
    Change("Fine-tuning on SQuAD", r"--iter_num=8310", "--iter_num=2", "time"),
    Change("Fine-tuning on SQuAD", r"--batch_size_per_device=8", "--batch_size_per_device=1", "memory"),
    Change("Fine-tuning on SQuAD", r"--gpu_num_per_node=4", "--gpu_num_per_node=2", "a rank takes seconds to start"),
    Change("Predicting", r"--num_hidden_layers=12", "--num_hidden_layers=2", _TWO_LAYERS),
    Change("Predicting", r"--iter_num=2709", "--iter_num=6", _FEW_QUESTIONS),
    Change("Several devices and nodes", r"--num_hidden_layers=12", "--num_hidden_layers=2", _TWO_LAYERS),
    Change("Several devices and nodes", r"--iter_num=2709", "--iter_num=3", _FEW_QUESTIONS),
    Change("GLUE", r"--batch_size_per_device=32", "--batch_size_per_device=4", "the sentences are fewer"),
    Change("The tutorial's initial model", r"--num_hidden_layers=12", "--num_hidden_layers=2", _TWO_LAYERS),
    Change("The tutorial's initial model", r"--iter_num=50", "--iter_num=1", "time"),
    Change("Vectors", r"dataset/corpus\.txt", "few_lines.txt", "a line is 49,152 numbers of text"),
    Change("A server", r"--serve=8000", "--help", "it would serve for ever"),
    Change(None, r"pytest -m gpu", "pytest -m gpu tests/engine/test_gpu.py", "no other test has the mark; time"),
    Change("Launchers", r"(oneflow_launch\.py).*", r"\1 --help", "tests/ranks/test_ranks.py runs it"),
)  # fmt: skip

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL_BLOCKS = [block for block in BLOCKS if block.language == "sh"]


def test_every_change_is_needed():
    for change in CHANGES:
        texts = [block.text for block in SHELL_BLOCKS if change.concerns(block)]
        assert any(re.search(change.text, text) for text in texts), change


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the files in the repository, with its environment and what the commands expect to find."""
    folder = tmp_path_factory.mktemp("readme") / "bert"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    if (ROOT / "kernels" / "build").is_dir():
        (folder / "kernels" / "build").symlink_to(ROOT / "kernels" / "build")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    lines = (ROOT / "dataset" / "corpus.txt").read_text().splitlines(keepends=True)
    # A model of BERT-base's width takes half a minute for all.
    (folder / "few_lines.txt").write_text("".join(lines[:20]))
    write_tfrecord_of_part(ROOT / "dataset" / "part-0", folder / "tf_examples.tfrecord")
    _write_models(folder)
    _write_glue(folder / "GLUE" / "MRPC")
    (folder / "hosts.txt").write_text("192.168.1.12\n192.168.1.14\n")
    _stand_ins(folder.parent / "bin", folder.parent / "downloads")
    yield folder
    # Some gigabytes of snapshots.
    shutil.rmtree(folder)


def _write_models(folder):
    """What is downloaded, in the folder beside: a checkpoint of Google's form and size but for two layers, and SQuAD.

    The same model as a Hugging Face folder is where the reader is to have one.
    """
    from tf_checkpoints import save_checkpoint

    downloads = folder.parent / "downloads"
    model = downloads / "model"
    model.mkdir(parents=True)
    config = json.loads((ROOT / "dataset" / "bert_config.json").read_text()) | {"num_hidden_layers": 2}
    (model / "bert_config.json").write_text(json.dumps(config))
    shutil.copy(ROOT / "dataset" / "vocab.txt", model)
    size = variables.read_config(model / "bert_config.json")[0]
    generator = np.random.default_rng(0)
    values = {
        name: (generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02))
        for name, shape in variables.encoder_shapes(size).items()
    }
    names = {name: re.sub("/weight$", "/kernel", name.replace("-", "/")) for name in values}
    save_checkpoint(model / "bert_model.ckpt", {names[name]: value for name, value in values.items()})
    subprocess.run(["zip", "-0", "-q", "-r", "../uncased_L-12_H-768_A-12.zip", "."], cwd=model, check=True)
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        shutil.copy(ROOT / "dataset" / "squad" / name, downloads)

    with layout.open_writer(downloads / "snapshot") as write:
        for name, value in values.items():
            write(name, value)
    subprocess.run(
        [sys.executable, ROOT / "tools/convert_hf.py", "export", "--snapshot_dir", downloads / "snapshot",
         "--bert_config_file", model / "bert_config.json", "--hf_dump_path", folder / "bert-base-uncased"],
        check=True, capture_output=True,
    )  # fmt: skip


def _write_glue(folder):
    """Files of the form of MRPC's."""
    folder.mkdir(parents=True)
    for name in ("train.tsv", "dev.tsv"):
        pairs = [f"{index % 2}\t{index}\t{index}\tIt rains .\tIt is wet .\n" for index in range(4)]
        (folder / name).write_text("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(pairs))


def _stand_ins(programs, downloads):
    """Programs that take the place of what needs a network: downloads, and the nodes of a cluster.

    test_nodes.py runs the launch scripts on two nodes; here the commands that the nodes get only read their flags.
    """
    only_reads_flags = """case "$*" in *--node_num=2*--node_list=192.168.1.12*192.168.1.14*) ;; *) exit 1 ;; esac"""
    texts = {
        "wget": f"""folder=.; [ "$1" = -P ] && {{ folder=$2; shift 2; }}; cp {downloads}/"${{1##*/}}" "$folder" """,
        "ssh": f"""while [ "$1" != -- ]; do shift; done; shift 2; {only_reads_flags}; exec sh -c "$1 --help" """,
        "sbatch": """while [ "${1#--}" != "$1" ]; do shift; done
            SLURM_JOB_NODELIST=x SLURM_JOB_NUM_NODES=2 SLURM_CPUS_ON_NODE=2 exec "$@" """,
        "scontrol": "echo 192.168.1.12; echo 192.168.1.14",
        "srun": f"""while [ "${{1#--}}" != "$1" ]; do shift; done; {only_reads_flags}; exec "$@" --help""",
    }
    programs.mkdir()
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)


def environment_of(repository):
    """The shell's environment: stand-ins first, then the project's Python, as an activated .venv has it."""
    path = f"{repository.parent / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **WITHOUT_FSYNC, "PATH": path}


def changed(block):
    """The commands of a block with what CHANGES says, continued lines joined."""
    text = block.text.replace("\\\n", " ")
    for change in CHANGES:
        if change.concerns(block):
            text = re.sub(change.text, change.replacement, text)
    return text


def run_block(repository, text, prefix=()):
    """Runs commands in the shell, which ends at the first that fails."""
    command = [*prefix, "bash", "-euo", "pipefail", "-c", text]
    return subprocess.Popen(
        command,
        cwd=repository,
        env=environment_of(repository),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


failed_before: list[Block] = []


@pytest.mark.parametrize("block", SHELL_BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_commands_run(repository, block):
    # The block itself, where it is run once more.
    if failed_before and failed_before != [block]:
        pytest.skip(f"needs the commands at {failed_before[0].page}:{failed_before[0].line}, which have failed")
    failed_before[:] = [block]
    text = changed(block)
    if "--node_list=" in text:
        run_on_two_nodes(repository, text)
    else:
        process = run_block(repository, text)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        expected = output_shown_for(block)
        if expected:
            assert_looks_like(output, expected)
    failed_before.clear()


def run_on_two_nodes(repository, text):
    """Runs commands on both nodes of their --node_list, which get addresses of this test's."""
    reason = namespaces.reason_for_none()
    if reason is not None:
        failed_before.clear()
        pytest.skip(reason)
    with namespaces.Nodes(2) as network:
        text, count = re.subn(r'--node_list="[\d.,]+"', f'--node_list="{",".join(network.addresses)}"', text)
        assert count == 1
        processes = [run_block(repository, text, network.prefix(index)) for index in range(2)]
        for process in processes:
            output, _ = process.communicate(timeout=300)
            assert process.returncode == 0, output


def output_shown_for(block):
    """The output that a page shows below a block of commands, under the same heading, or None."""
    following = next(iter(BLOCKS[BLOCKS.index(block) + 1 :]), block)
    return following.text if (following.language, following.heading) == ("text", block.heading) else None


def assert_looks_like(output, expected):
    """Every line that is shown comes in the output, in order, but for what differs from machine to machine.

    "..." stands for lines that are left out.
    Losses are those shown where the same kernels compute them: another reader takes the records in another order.
    """
    lines = iter(output.splitlines())
    for shown in expected.replace("...\n", "").splitlines():
        pattern = re.compile(
            re.sub(r"Time stamp:.*|Device:.*|CPU:.*|speed:.*", lambda match: match[0].split(":")[0] + ":.*",
                   re.sub(r"loss: [\d.]+", r"loss: ([\\d.]+)", re.sub(r"([\[\](){}+*?|^$\\])", r"\\\1", shown)))
        )  # fmt: skip
        match = next((match for line in lines if (match := pattern.fullmatch(line))), None)
        assert match, f"'{shown}' is not in this, or not in its place:\n{output}"
        if "native kernels" not in output:
            continue
        losses = [float(loss) for loss in re.findall(r"loss: ([\d.]+)", shown)]
        np.testing.assert_allclose([float(loss) for loss in match.groups()], losses, atol=0.02)
