#!/usr/bin/env bash
# Fine-tunes a model on SQuAD and scores it: records, training, prediction, answers, score and page in one command.
#
#   scripts/squad.sh TRAIN.json DEV.json MODEL OUT [FLAG...]
#
#   scripts/squad.sh train-v1.1.json dev-v1.1.json uncased_L-12_H-768_A-12-oneflow output/squad --gpu_num_per_node=4
#
# MODEL is a snapshot, such as convert_tf_ckpt_to_of.py and tools/convert_hf.py write. OUT gets the folders train, dev
# (records) and model (snapshots), all_results.npy, predictions.json and its companions, score.json and squad.html.
#
# FLAGS are those of run_squad.py, with the defaults --num_epochs=3 --learning_rate=3e-5 --batch_size_per_device=8 and a
# warm-up of a tenth of the run; also --max_seq_length, --doc_stride, --max_query_length, --vocab_file, --do_lower_case
# (of tools/create_squad_data.py), --n_best_size, --max_answer_length, --null_score_diff_threshold (of npy2json.py) and
# --version_2_with_negative for SQuAD v2.0. --gpu_num_per_node, --device, --cpu_threads, --use_fp16, --amp_dtype, --tf32
# and --bert_config_file are for prediction too, --use_int8 for prediction alone. A flag with a value is --flag=value.
#
# A step is skipped if its output exists, made by the same command from the same input. After an interruption the same
# command continues, training from its newest snapshot. Exit status: that of the step that fails; 2 for a usage error.
set -u
unset CDPATH

fail() {
    echo "squad.sh: error: $*" >&2
    exit 2
}

case ${1:-} in
    -h | --help) sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"; exit ;;
esac
[ $# -ge 4 ] || fail "give four names: scripts/squad.sh TRAIN.json DEV.json MODEL OUT [FLAG...]"
train=$1 dev=$2 model=$3 out=$4
shift 4
for name in "$train" "$dev" "$model" "$out"; do
    case $name in "" | -*) fail "$(printf '%q' "$name") is not a name of a file or folder" ;; esac
done
for file in "$train" "$dev"; do
    [ -f "$file" ] && [ -r "$file" ] || fail "$(printf '%q' "$file"): there is no such file"
done
[ -f "$model/snapshot_done" ] || fail "$(printf '%q' "$model"): is no snapshot; give one, or convert a model"
[ ! -e "$out" ] || [ -d "$out" ] || fail "$(printf '%q' "$out"): is a file; give a folder"

# Which step a flag is for.
records=(--max_seq_length=384) answers=() training=() devices=() prediction=()
epochs= batch=8 batches=1 ranks=1 length=384 iterations= warmup= is_v2= vocab= case=
for flag; do
    value=${flag#*=}
    case $flag in
        --max_seq_length=*) length=$value records+=("$flag") ;;
        --doc_stride=* | --max_query_length=*) records+=("$flag") ;;
        --vocab_file=*) vocab=$value ;;
        --do_lower_case=*) case=$value ;;
        --n_best_size=* | --max_answer_length=* | --null_score_diff_threshold=*) answers+=("$flag") ;;
        --version_2_with_negative | --version_2_with_negative=[Tt]rue) is_v2=yes ;;
        --version_2_with_negative=[Ff]alse) is_v2= ;;
        --num_epochs=*) epochs=$value ;;
        --iter_num=*) iterations=$value ;;
        --warmup_batches=*) warmup=$value ;;
        --batch_size_per_device=*) batch=$value ;;
        --num_accumulation_steps=*) batches=$value training+=("$flag") ;;
        --gpu_num_per_node=*) ranks=$value devices+=("$flag") ;;
        --device=* | --cpu_threads=* | --amp_dtype=* | --use_fp16 | --use_fp16=* | --tf32=* | --bert_config_file=*)
            devices+=("$flag") ;;
        --use_int8 | --use_int8=*) prediction+=("$flag") ;;
        --data_dir=* | --seq_length=* | --model_load_dir=* | --model_save_dir=* | --log_dir=* | --resume | --resume=* | \
            --save_last_snapshot | --save_last_snapshot=* | --node_num=* | --node_list=*)
            fail "${flag%%=*}: this script gives it to run_squad.py itself; leave it out" ;;
        --help | --version) fail "$flag: give it alone" ;;
        --?*) training+=("$flag") ;;
        *) fail "$(printf '%q' "$flag") is no flag; write a flag with a value as --flag=value" ;;
    esac
done
[ -z "$epochs" ] || [ -z "$iterations" ] || fail "--num_epochs and --iter_num exclude each other"
[[ "${prediction[*]-}" != *--use_int8* || "${devices[*]-}" != *--use_fp16* ]] ||
    fail "--use_int8 and --use_fp16 exclude each other"
epochs=${epochs:-3}
for number in "$epochs" "$batch" "$batches" "$ranks" "$length" ${iterations:+"$iterations"} ${warmup:+"$warmup"}; do
    # Bash takes a leading 0 for octal.
    [[ $number =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "$(printf '%q' "$number") is not a whole number"
done
[ "$epochs" -gt 0 ] && [ "$batch" -gt 0 ] && [ "$batches" -gt 0 ] && [ "$ranks" -gt 0 ] ||
    fail "epochs, batch size, accumulation steps and devices must be above 0"
if [ -n "$is_v2" ]; then
    records_of_v2=(--version_2_with_negative) answers+=(--version_2_with_negative)
else
    records_of_v2=()
    [[ "${answers[*]-}" != *--null_score_diff_threshold* ]] ||
        fail "--null_score_diff_threshold has no effect without --version_2_with_negative"
fi

# What describes the model (snapshots/model_files.py).
described=$model/bert-embeddings-word_embeddings
[ -n "$vocab" ] || vocab=$described/vocab.txt
[ -f "$vocab" ] || fail "$(printf '%q' "$model"): holds no vocabulary; give the model's by --vocab_file=FILE"
find_case='s/.*"do_lower_case": *\(true\|false\).*/\1/p'
[ -n "$case" ] || case=$(sed -n "$find_case" "$described/tokenizer_config.json" 2>/dev/null)
[ -n "$case" ] ||
    fail "$(printf '%q' "$model"): does not tell whether its model is uncased; give --do_lower_case=True or =False"
records+=("--vocab_file=$vocab" "--do_lower_case=$case")

. "$(dirname "$0")/steps.sh"
open_output

for part in train dev; do
    is_training=False source=$dev more=()
    if [ $part = train ]; then
        is_training=True source=$train more=(${records_of_v2[@]+"${records_of_v2[@]}"})
    fi
    step "records-$part" "$(lines "$source" "$vocab")" "$out/$part" \
        "$python" "$root/tools/create_squad_data.py" --input_file="$source" --output_dir="$out/$part" --overwrite \
        --is_training=$is_training "${records[@]}" ${more[@]+"${more[@]}"}
done

if [ -z "$iterations" ]; then
    count=$(sed -n 's/.* questions, \([0-9]*\) records of length .*/\1/p' "$steps/records-train.log")
    iterations=$((count * epochs / (batch * batches * ranks)))
    [ "$iterations" -gt 0 ] || iterations=1
fi
run=(--seq_length="$length" --batch_size_per_device="$batch" --log_dir="$out/model" ${devices[@]+"${devices[@]}"})
fine_tune=("$python" "$root/run_squad.py" --data_dir="$out/train" --model_load_dir="$model" --model_save_dir="$out/model"
    --learning_rate=3e-5 --iter_num="$iterations" --warmup_batches="${warmup:-$((iterations / 10))}"
    --save_last_snapshot --resume --reset_train_step "${run[@]}" ${training[@]+"${training[@]}"})
begin fine-tuning "$(lines "$out/train" "$model")" "$out/model" "${fine_tune[@]}"
step fine-tuning "$(lines "$out/train" "$model")" "$out/model/last_snapshot" "${fine_tune[@]}"

step prediction "$(lines "$out/dev" "$out/model/last_snapshot")" "$out/all_results.npy" \
    "$python" "$root/run_squad_predict.py" --data_dir="$out/dev" --model_load_dir="$out/model/last_snapshot" \
    --all_results_file="$out/all_results.npy" "${run[@]}" ${prediction[@]+"${prediction[@]}"}

predictions=$out/predictions.json best=$out/nbest_predictions.json odds=$out/null_odds.json
made=("$predictions" "$best")
[ -z "$is_v2" ] || made+=("$odds")
step answers "$(lines "$out/all_results.npy" "$dev" "$vocab")" "$(lines "${made[@]}")" \
    "$python" "$root/npy2json.py" --all_results_file="$out/all_results.npy" --predict_file="$dev" --vocab_file="$vocab" \
    --output_dir="$out" ${answers[@]+"${answers[@]}"}

write_score() {
    "$@" >"$out/.score.json" && mv "$out/.score.json" "$out/score.json"
}
score=(write_score "$python" "$root/evaluate-v1.1.py" "$dev" "$predictions")
[ -z "$is_v2" ] || score=(write_score "$python" "$root/evaluate-v2.0.py" "$dev" "$predictions" --na-prob-file="$odds")
step score "$(lines "$dev" "${made[@]}")" "$out/score.json" "${score[@]}"

step page "$(lines "$dev" "$predictions" "$best")" "$out/squad.html" \
    "$python" "$root/tools/show_squad.py" --input_file="$dev" --prediction_file="$predictions" --nbest_file="$best" \
    -o "$out/squad.html"
cat "$out/score.json"
