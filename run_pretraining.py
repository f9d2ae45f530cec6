"""Pre-trains BERT: masked language model and next sentence prediction."""

import config
import records
from run_setup import prepare_run
from util import run_script


def main():
    args = config.parse_pretraining_args()
    saves = args.save_last_snapshot or args.iter_num >= args.model_save_every_n_iter
    run = prepare_run(args, records.pretraining_fields(args), saves)

    # The modules below build on OneFlow, which prepare_run has loaded.
    import job_state
    from bert_util import Initializer
    from data_loader import OFRecordLoader
    from pretrain import BertForPretraining, PretrainJob
    from training import train

    model = BertForPretraining(config.bert_config(args), Initializer(run.placement, args.seed))
    loader = OFRecordLoader(run.part_paths, run.fields, run.batch_size, run.placement, shuffle=True, seed=args.seed)
    job = PretrainJob(model, loader, args, mixed_precision=run.mixed_precision)
    first_step = 0
    if args.model_load_dir:
        print(f"Restoring model from {args.model_load_dir}.", flush=True)
        first_step = job_state.restore(job, args.model_load_dir)
    else:
        print("Init model on demand", flush=True)
    train(job, args, first_step, run.log_path)


if __name__ == "__main__":
    run_script(main)
