"""From SQuAD's JSON to the score, every script as a process: a small model learns the project's questions by heart."""

import json

from running import ROOT, run

QUESTIONS = ROOT / "dataset" / "squad" / "train-v1.1.json"
VOCAB = ROOT / "dataset" / "vocab.txt"
WINDOWS = {"max_seq_length": 128, "doc_stride": 64}
MODEL = {
    "seq_length": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size_per_head": 32,
    "vocab_size": 1200,
    "data_part_num": 1,
    "batch_size_per_device": 8,
}


def test_a_model_that_has_learnt_the_answers_scores_100(tmp_path):
    def script(name, *arguments, **flags):
        result = run(name, *arguments, cwd=tmp_path, **flags)
        assert result.returncode == 0, result.stderr
        return result

    for purpose, is_training in (("train", True), ("dev", False)):
        script(
            "tools/create_squad_data.py",
            input_file=QUESTIONS,
            output_dir=tmp_path / purpose,
            vocab_file=VOCAB,
            is_training=is_training,
            part_num=1,
            **WINDOWS,
        )
    script(
        "run_squad.py",
        **MODEL,
        data_dir=tmp_path / "train",
        num_epochs=100,
        learning_rate=1e-3,
        warmup_batches=40,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
        save_last_snapshot=True,
        log_dir=tmp_path,
        model_save_dir=tmp_path,
    )
    script(
        "run_squad_predict.py",
        **MODEL,
        data_dir=tmp_path / "dev",
        model_load_dir=tmp_path / "last_snapshot",
        log_dir=tmp_path,
    )
    script(
        "npy2json.py",
        vocab_file=VOCAB,
        bert_config_file=ROOT / "dataset" / "bert_config.json",
        do_train=False,
        do_predict=True,
        all_results_file="./all_results.npy",
        predict_file=QUESTIONS,
        output_dir="./squad_base/",
        **WINDOWS,
    )
    result = script("evaluate-v1.1.py", QUESTIONS, tmp_path / "squad_base" / "predictions.json")
    assert json.loads(result.stdout) == {"exact_match": 100.0, "f1": 100.0}
