"""docs/adding-a-task.md: its code, put where it says, trains a classifier."""

import re
import shutil

import numpy as np

from made_parts import random_pretraining_features
from running import ROOT, run

PAGE = (ROOT / "docs" / "adding-a-task.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_pages_classifier_learns_its_labels(tmp_path):
    fields, writer, flags, model, script = CODE
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for room in ROOT.glob("*/__init__.py"):
        shutil.copytree(room.parent, tmp_path / room.parent.name)
    (tmp_path / "kernels").mkdir()
    if (ROOT / "kernels" / "build").is_dir():
        (tmp_path / "kernels" / "build").symlink_to(ROOT / "kernels" / "build")
    for name, code in (("records/checks.py", fields), ("config.py", flags)):
        with open(tmp_path / name, "a") as file:
            file.write(f"\n\n{code}")
    (tmp_path / "classifier.py").write_text(model)
    (tmp_path / "run_classifier.py").write_text(script)

    generator = np.random.default_rng(0)
    samples = []
    for label in (0, 1) * 4:
        features = random_pretraining_features(generator, 32, 1, 200)
        sample = {name: features[name] for name in ("input_ids", "input_mask", "segment_ids")}
        samples.append({**sample, "label_ids": np.array([label], dtype=np.int32)})
    namespace = {}
    exec(writer, namespace)
    namespace["write_part"](tmp_path / "part-0", samples)

    result = run(
        tmp_path / "run_classifier.py",
        data_dir=tmp_path,
        data_part_num=1,
        batch_size_per_device=8,
        iter_num=60,
        loss_print_every_n_iter=20,
        learning_rate=1e-3,
        warmup_batches=10,
        seq_length=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size_per_head=16,
        vocab_size=200,
        max_position_embeddings=40,
        log_dir=tmp_path,
        model_save_dir=tmp_path / "model",
        save_last_snapshot=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    losses = [float(loss) for loss in re.findall(r"total_loss: ([\d.]+)", result.stdout)]
    assert len(losses) == 3
    assert losses[-1] < 0.05 < 0.2 < losses[0], losses
    saved = tmp_path / "model" / "last_snapshot"
    assert (saved / "classifier-weight").is_dir()
    assert (saved / "System-Train-TrainStep-ClassifierJob").is_dir()
