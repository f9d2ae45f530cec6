"""scripts/squad.sh: which steps it runs, with which flags, and when it leaves them out.

A stand-in for Python writes down its arguments and makes the outputs; tests/docs/test_commands.py runs the real thing.
"""

import os
import subprocess

import pytest

import small_models
from running import ROOT, assert_fails_with_one_line

SCRIPT = ROOT / "scripts/squad.sh"
STEPS = [
    "create_squad_data",
    "create_squad_data",
    "run_squad",
    "run_squad_predict",
    "npy2json",
    "evaluate-v1.1",
    "show_squad",
]
STAND_IN = r"""#!/bin/bash
printf '%s\n' "${1##*/}" "${@:2}" "" >>"$CALLS"
[ "$FAIL" != "${1##*/}" ] || exit 3
for flag; do
    case $flag in
        --output_dir=*) folder=${flag#*=} ;;
        --all_results_file=*) results=${flag#*=} ;;
        --model_save_dir=*) mkdir -p "${flag#*=}/last_snapshot" && date +%N >"${flag#*=}/last_snapshot/snapshot_done" ;;
    esac
    last=$flag
done
case $1 in
    *create_squad_data.py)
        mkdir -p "$folder" && date +%N >"$folder/part-0"
        echo "20 questions, 40 records of length 384 in x" ;;
    *predict.py) date +%N >"$results" ;;
    *npy2json.py)
        for name in predictions nbest_predictions null_odds; do date +%N >"$folder/$name.json"; done ;;
    *evaluate*) echo '{"f1": 1}' ;;
    *show_squad.py) date +%N >"$last" ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script in a folder with files `train`, `dev` and `a model`; returns (result, calls of Python)."""
    folder = tmp_path / "with a space"
    folder.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text(STAND_IN)
    (tmp_path / "bin/python").chmod(0o755)
    for name in ("train", "dev"):
        (folder / name).write_text(name)
    small_models.write_snapshot(folder / "a model", small_models.values())

    def run(*arguments, fail="", names=("train", "dev", "a model", "out")):
        log = tmp_path / "calls"
        log.write_text("")
        environment = {
            **os.environ,
            **{"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": "x", "CALLS": str(log), "FAIL": fail},
        }
        result = subprocess.run(
            [SCRIPT, *names, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        calls = [call.splitlines() for call in log.read_text().split("\n\n")[:-1]]
        return result, [(name.removesuffix(".py"), flags) for name, *flags in calls]

    return run


def test_each_step_gets_its_flags(run):
    result, calls = run(
        "--learning_rate=1e-4", "--num_epochs=2", "--batch_size_per_device=4", "--doc_stride=32", "--use_int8"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith('{"f1": 1}\n')
    assert [name for name, _ in calls] == STEPS
    flags = [set(flags) for _, flags in calls]
    vocab = "--vocab_file=a model/bert-embeddings-word_embeddings/vocab.txt"
    for number, name in enumerate(("train", "dev")):
        assert {
            f"--input_file={name}",
            f"--output_dir=out/{name}",
            "--doc_stride=32",
            "--do_lower_case=true",
            vocab,
        } <= (flags[number])
        assert f"--is_training={name == 'train'}" in flags[number]
    # 40 records x 2 epochs / 4
    assert {"--iter_num=20", "--warmup_batches=2", "--seq_length=384", "--batch_size_per_device=4"} <= flags[2]
    assert {"--model_load_dir=a model", "--data_dir=out/train", "--resume"} <= flags[2]
    assert calls[2][1].index("--learning_rate=1e-4") > calls[2][1].index("--learning_rate=3e-5")
    assert {"--model_load_dir=out/model/last_snapshot", "--data_dir=out/dev", "--seq_length=384"} <= flags[3]
    assert "--learning_rate=1e-4" not in flags[3]
    assert [("--use_int8" in one) for one in flags] == [False, False, False, True, False, False, False]
    assert {vocab, "--predict_file=dev", "--output_dir=out"} <= flags[4]


def test_epochs_count_all_sequences_of_an_update(run):
    _, calls = run("--num_epochs=2", "--batch_size_per_device=4", "--num_accumulation_steps=2", "--gpu_num_per_node=5")
    # 40 records x 2 epochs / (4 x 2 x 5)
    assert {"--iter_num=2", "--num_accumulation_steps=2"} <= set(calls[2][1])
    assert "--num_accumulation_steps=2" not in calls[3][1]


def test_flags_of_version_2_and_devices(run):
    result, calls = run(
        "--version_2_with_negative",
        "--gpu_num_per_node=2",
        "--iter_num=7",
        "--warmup_batches=3",
        "--null_score_diff_threshold=-1",
    )
    assert result.returncode == 0, result.stderr
    flags = [set(flags) for _, flags in calls]
    assert [("--version_2_with_negative" in one) for one in flags] == [True, False, False, False, True, False, False]
    assert "--null_score_diff_threshold=-1" in flags[4]
    assert [("--gpu_num_per_node=2" in one) for one in flags] == [False, False, True, True, False, False, False]
    assert {"--iter_num=7", "--warmup_batches=3"} <= flags[2]
    assert calls[5] == ("evaluate-v2.0", ["dev", "out/predictions.json", "--na-prob-file=out/null_odds.json"])


def test_a_step_whose_output_stands_and_fits_is_left_out(run, tmp_path):
    folder = tmp_path / "with a space"
    assert run()[0].returncode == 0
    result, calls = run()
    assert (result.returncode, result.stderr, calls) == (0, "", [])
    assert result.stdout.count(": up to date\n") == len(STEPS) and result.stdout.endswith('{"f1": 1}\n')

    (folder / "dev").write_text("other questions")
    assert [name for name, _ in run()[1]] == [STEPS[1], *STEPS[3:]]
    (folder / "out/predictions.json").unlink()
    assert [name for name, _ in run()[1]] == STEPS[4:]
    assert [name for name, _ in run("--n_best_size=5")[1]] == STEPS[4:]
    (folder / "out/squad.html").write_text("something else")
    assert [name for name, _ in run("--n_best_size=5")[1]] == STEPS[6:]


def test_goes_on_after_a_step_that_failed(run):
    result, calls = run(fail="run_squad_predict.py")
    assert (result.returncode, [name for name, _ in calls]) == (3, STEPS[:4])
    result, calls = run()
    assert (result.returncode, [name for name, _ in calls]) == (0, STEPS[3:])


def test_a_model_of_other_flags_is_not_replaced(run):
    assert run()[0].returncode == 0
    result, calls = run("--learning_rate=1e-4")
    assert_fails_with_one_line(result, "squad.sh: error: out/model: holds a model that was begun with other flags")
    assert calls == []


@pytest.mark.parametrize(
    ("names", "arguments", "fragment"),
    [
        (["train", "dev", "a model"], [], "give four names"),
        (["none", "dev", "a model", "out"], [], "none: there is no such file"),
        (["train", "dev", "train", "out"], [], "train: is no snapshot"),
        (["train", "dev", "a model", "dev"], [], "dev: is a file; give a folder"),
        (["train", "dev", "a model", "-x"], [], "-x is not a name"),
        (None, ["--learning_rate", "1e-4"], "1e-4 is no flag; write a flag with a value as --flag=value"),
        (None, ["--num_epochs=x"], "x is not a whole number"),
        (None, ["--num_epochs=08"], "08 is not a whole number"),
        (None, ["--num_epochs=2", "--iter_num=9"], "--num_epochs and --iter_num exclude each other"),
        (None, ["--use_int8", "--use_fp16"], "--use_int8 and --use_fp16 exclude each other"),
        (None, ["--batch_size_per_device=0"], "must be above 0"),
        (None, ["--num_accumulation_steps=0"], "must be above 0"),
        (None, ["--null_score_diff_threshold=1"], "has no effect without --version_2_with_negative"),
        (None, ["--help"], "--help: give it alone"),
        (None, ["--data_dir=x"], "--data_dir: this script gives it to run_squad.py itself"),
    ],
)
def test_wrong_usage_is_one_line(run, names, arguments, fragment):
    result, calls = run(*arguments, **({"names": names} if names else {}))
    assert_fails_with_one_line(result, "squad.sh: error: ", fragment)
    assert calls == []
