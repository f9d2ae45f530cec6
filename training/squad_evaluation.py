"""Evaluates a SQuAD model during training, with the code of npy2json.py and the metric of its data set's version."""

import dataclasses
from pathlib import Path

import numpy as np

import config
from ranks.ranks import rank
from records import checks, description
from snapshots.model_files import read_vocab_bytes
from system.errors import UserError
from text import squad_answers, squad_file, squad_metric, squad_windows
from text.tokenization import Tokenizer, read_vocab, vocab_checksum

# The first is the default of --metric_for_best_model.
NAMES = ("f1", "exact_match")


@dataclasses.dataclass(frozen=True)
class Questions:
    """The evaluation data. Only rank 0 has it."""

    data_set: checks.DataSet
    examples: list  # of squad_answers.Example
    references: dict  # id -> list of texts
    is_v2: bool  # questions may have no answer
    do_lower_case: bool

    def metrics(self, fields, outputs):
        """Returns {"exact_match": ..., "f1": ...} in percent, of the questions whose windows have all been scored.

        `outputs`: start and end logits, [N, S] each, in the order of the windows. `fields` is not used. For SQuAD v2.0
        the threshold of "no answer" is 0, as the default of npy2json.py's --null_score_diff_threshold.
        """
        start_logits, end_logits = outputs
        results = {"start_logits": start_logits, "end_logits": end_logits}
        examples = [one for one in self.examples if one.first_window + len(one.windows) <= len(start_logits)]
        threshold = 0.0 if self.is_v2 else None
        answers, _, _ = squad_answers.answer_questions(
            examples, results, self.do_lower_case, null_score_diff_threshold=threshold
        )
        return squad_metric.evaluate({one.id: self.references[one.id] for one in examples}, answers, self.is_v2)


def check(args):
    """Returns the Questions of --eval_data_dir and --eval_predict_file on rank 0, None on other ranks.

    Vocabulary, case and windows are those of the records. Raises UserError if the records do not state them, or were
    made from other questions.
    """
    if rank() > 0:
        return None
    folder, path = args.eval_data_dir, args.eval_predict_file
    checks.part_paths(folder, flag="eval_data_dir")
    described = description.read(folder)
    if described is None or not {"doc_stride", "max_query_length", "questions_sha256"} <= described.keys():
        raise UserError(
            f"--eval_data_dir={folder}: has no {description.FILE} that tells the windows of its questions; make its "
            "records anew with tools/create_squad_data.py"
        )
    if described["kind"] != description.SQUAD_PREDICTION:
        raise UserError(
            f"--eval_data_dir={folder}: its records are for {described['kind']}; make some of --eval_predict_file with "
            "tools/create_squad_data.py --is_training=False"
        )
    version, paragraphs = squad_file.read_paragraphs(path)
    is_v2 = squad_file.is_version_2(version, paragraphs)
    references = squad_file.reference_answers(paragraphs, path, may_lack=is_v2)
    if described["questions_sha256"] != description.questions_checksum(paragraphs):
        raise UserError(
            f"--eval_predict_file={path}: the records in {folder} are of other questions or contexts, or of the same "
            "in another order; give the file of which they were made"
        )
    data_set = checks.check_whole_data_set("eval_data_dir", folder, checks.squad_predict_fields(args))
    vocab_file = Path(folder) / description.VOCAB_FILE
    if vocab_checksum(read_vocab_bytes(vocab_file)) != described["vocab_sha256"]:
        raise UserError(
            f"{vocab_file}: is not the vocabulary that the records beside it were made with; make them anew"
        )
    vocab = read_vocab(vocab_file)
    examples = squad_answers.make_examples(
        paragraphs,
        Tokenizer(vocab, described["do_lower_case"]),
        described["max_seq_length"],
        described["doc_stride"],
        described["max_query_length"],
    )
    _check_windows(args, data_set, examples)
    return Questions(data_set, examples, references, is_v2, described["do_lower_case"])


def _check_windows(args, data_set, examples):
    """Raises UserError unless the records are the windows of the `examples`, in order."""
    num_windows = sum(len(example.windows) for example in examples)
    unique_ids = [record["unique_ids"][0] for record in checks.read_records(data_set)]
    if not np.array_equal(unique_ids, squad_windows.FIRST_UNIQUE_ID + np.arange(num_windows)):
        raise UserError(
            f"--eval_data_dir={args.eval_data_dir}: its {len(unique_ids)} records are not the {num_windows} windows of "
            f"{args.eval_predict_file}, in order; make them anew"
        )
    if args.eval_iter_num is not None:
        most = args.eval_iter_num * config.evaluation_batch_size(args)
        if most < len(examples[0].windows):
            raise UserError(
                f"--eval_iter_num={args.eval_iter_num}: too few batches for the first question, which has "
                f"{len(examples[0].windows)} windows"
            )
