#!/usr/bin/env bash
# Pre-trains a model from text: vocabulary, records of 128 and 512 tokens, phase 1 at 128, phase 2 at 512.
#
#   scripts/pretrain_two_phases.sh TEXT OUT [FLAG...]
#
#   scripts/pretrain_two_phases.sh 'wikipedia/*.txt' output/bert-base --train_batch_size=256 --dry_run
#
# TEXT is files, names or patterns separated by commas: one sentence a line, a blank line between documents. OUT gets
# vocab.txt, records1, records2 (records), phase1 and phase2 (snapshots); phase2/last_snapshot is the model.
#
# A flag with a value is written --flag=value. --NAME_phase2=VALUE gives --NAME=VALUE to phase 2 alone. Flags, with
# defaults of BERT-base (Devlin et al. 2018; google-research/bert: 90 % of the updates at 128 tokens):
#   --iter_num=1000000               updates of both phases; a tenth is phase 2, unless --iter_num_phase2 tells
#   --train_batch_size=256           sequences in an update, over all devices
#   --batch_size_per_device=32       and a quarter of that in phase 2; accumulation makes up the rest
#   --learning_rate=1e-4             falls in one line over both phases, unless --learning_rate_phase2 is given
#   --warmup_batches                 a hundredth of phase 1; 0 in phase 2
#   --optimizer_type=lamb            NVIDIA's values for large batches: 7038 and 1563 updates, batches of 65536 and
#                                    32768, learning rates of 6e-3 and 4e-3, warm-ups of 2000 and 200, power 0.5
#   --max_seq_length=128             512 in phase 2
#   --max_predictions_per_seq=20     80 in phase 2
#   --num_hidden_layers=12, --num_attention_heads=12
#   --vocab_file=FILE                or --vocab_size=30522 of a new one
#   --do_lower_case, --part_num=8, --workers, --dupe_factor, --masked_lm_prob, --short_seq_prob, --do_whole_word_mask,
#   --random_seed                    of tools/create_pretraining_data.py
#   --dry_run                        print the commands, and from the first megabytes of the text the sizes and hours
#   --seconds_per_update=S1,S2       for the hours of the dry run; without it some steps of each phase are measured
# and all other flags of run_pretraining.py.
#
# A step is skipped if its output exists, made by the same command from the same input. After an interruption the same
# command continues, training from its newest snapshot. Exit status: that of the step that fails; 2 for a usage error.
set -euo pipefail
unset CDPATH

SAMPLE_BYTES=4000000

fail() {
    echo "pretrain_two_phases.sh: error: $*" >&2
    exit 2
}

case ${1:-} in
    -h | --help) sed -n '2,/^set -euo/s/^# \{0,1\}//p' "$0" | grep -v '^set -euo'; exit ;;
esac
[ $# -ge 2 ] || fail "give two names: scripts/pretrain_two_phases.sh TEXT OUT [FLAG...]"
text=$1 out=$2
shift 2
for name in "$text" "$out"; do
    case $name in "" | -*) fail "$(printf '%q' "$name") is not a name of a file or folder" ;; esac
done
[ ! -e "$out" ] || [ -d "$out" ] || fail "$(printf '%q' "$out"): is a file; give a folder"
files=()
IFS=, read -r -d '' -a patterns <<<"$text," || true
for pattern in "${patterns[@]}"; do
    pattern=${pattern%$'\n'}
    [ -n "$pattern" ] || continue
    if [ -f "$pattern" ]; then
        files+=("$pattern")
    else
        mapfile -t found < <(compgen -G "$pattern" | LC_ALL=C sort)
        [ ${#found[@]} -gt 0 ] || fail "$(printf '%q' "$pattern"): there is no such file"
        files+=("${found[@]}")
    fi
done
[ ${#files[@]} -gt 0 ] || fail "$(printf '%q' "$text"): names no file"
for file in "${files[@]}"; do
    [ -f "$file" ] && [ -r "$file" ] || fail "$(printf '%q' "$file"): cannot be read as a file"
done

vocab='' vocab_size=30522 case=True total='' ranks=1 lamb='' dry='' seconds='' records=(--part_num=8) workers=()
declare -A first=([max_seq_length]=128 [max_predictions_per_seq]=20 [batch_size_per_device]=32)
declare -A second=([max_seq_length]=512 [max_predictions_per_seq]=80)
common=(--num_hidden_layers=12 --num_attention_heads=12) only_second=()
for flag; do
    value=${flag#*=} name=${flag%%=*}
    name=${name#--}
    case $flag in
        --iter_num=*) total=$value ;;
        --vocab_file=*) vocab=$value ;;
        --vocab_size=*) vocab_size=$value ;;
        --do_lower_case=*) case=$value ;;
        --workers=*) workers=("$flag") ;;
        --part_num=* | --dupe_factor=* | --masked_lm_prob=* | --short_seq_prob=* | --do_whole_word_mask | \
            --do_whole_word_mask=* | --random_seed=*) records+=("$flag") ;;
        --train_batch_size=* | --batch_size_per_device=* | --learning_rate=* | --warmup_batches=* | \
            --max_seq_length=* | --max_predictions_per_seq=*) first[$name]=$value ;;
        --iter_num_phase2=* | --train_batch_size_phase2=* | --batch_size_per_device_phase2=* | \
            --learning_rate_phase2=* | --warmup_batches_phase2=* | --max_seq_length_phase2=* | \
            --max_predictions_per_seq_phase2=*) second[${name%_phase2}]=$value ;;
        --optimizer_type=*)
            common+=("$flag")
            case $value in lamb) lamb=yes ;; *) lamb='' ;; esac ;;
        --gpu_num_per_node=*) ranks=$value common+=("$flag") ;;
        --dry_run) dry=yes ;;
        --seconds_per_update=*) seconds=$value ;;
        --data_dir=* | --seq_length=* | --model_load_dir=* | --model_save_dir=* | --log_dir=* | --resume | --resume=* | \
            --save_last_snapshot | --save_last_snapshot=* | --node_num=* | --node_list=* | --num_accumulation_steps=* | \
            --end_learning_rate=* | --reset_train_step | --reset_train_step=*)
            fail "${flag%%=*}: this script gives it to run_pretraining.py itself; leave it out" ;;
        --?*_phase2=*) only_second+=("--${name%_phase2}=$value") ;;
        --?*) common+=("$flag") ;;
        *) fail "$(printf '%q' "$flag") is no flag; write a flag with a value as --flag=value" ;;
    esac
done
[ -z "$vocab" ] || [ -f "$vocab" ] || fail "--vocab_file=$(printf '%q' "$vocab"): there is no such file"
[ -z "$seconds" ] || [[ $seconds =~ ^[0-9]+(\.[0-9]+)?,[0-9]+(\.[0-9]+)?$ ]] ||
    fail "--seconds_per_update=$(printf '%q' "$seconds"): give two numbers, as in 1.5,4"
[ -z "$seconds" ] || [ -n "$dry" ] || fail "--seconds_per_update is for --dry_run; leave it out"

if [ -n "$lamb" ]; then
    : "${first[train_batch_size]:=65536}" "${first[learning_rate]:=6e-3}" "${second[learning_rate]:=4e-3}"
    [ -n "$total" ] || total=8601 second[iter_num]=${second[iter_num]:-1563}
    common=(--lr_power=0.5 "${common[@]}")
    share=2
else
    : "${first[train_batch_size]:=256}" "${first[learning_rate]:=1e-4}" "${total:=1000000}"
    share=1
fi
for number in "$total" "$ranks" "${second[iter_num]:-1}" "${first[train_batch_size]}" "${second[train_batch_size]:-1}" \
    "${first[batch_size_per_device]}" "${second[batch_size_per_device]:-1}"; do
    [[ $number =~ ^[1-9][0-9]{0,8}$ ]] || fail "$(printf '%q' "$number") is not a whole number above 0"
done
: "${second[iter_num]:=$(((total + 9) / 10))}"
first[iter_num]=$((total - second[iter_num]))
[ "${first[iter_num]}" -gt 0 ] || fail "--iter_num=$total leaves no update for phase 1"
: "${second[train_batch_size]:=$((first[train_batch_size] / share))}"
quarter=$((first[batch_size_per_device] / 4))
: "${second[batch_size_per_device]:=$((quarter > 0 ? quarter : 1))}"
if [ -n "$lamb" ]; then
    # 28.43 % and 12.8 % of the updates.
    : "${first[warmup_batches]:=$((first[iter_num] * 2843 / 10000))}" "${second[warmup_batches]:=$((second[iter_num] * 128 / 1000))}"
else
    : "${first[warmup_batches]:=$((first[iter_num] / 100))}" "${second[warmup_batches]:=0}"
    if [ -z "${second[learning_rate]:-}" ]; then
        [[ ${first[learning_rate]} =~ ^[0-9.]+([eE][-+]?[0-9]+)?$ ]] ||
            fail "--learning_rate=$(printf '%q' "${first[learning_rate]}") is not a number"
        second[learning_rate]=$(awk -v rate="${first[learning_rate]}" -v part="${second[iter_num]}" -v all="$total" \
            'BEGIN { printf "%.6g", rate * part / all }')
        first[end_learning_rate]=${second[learning_rate]}
    fi
fi
for phase in first second; do
    declare -n of=$phase
    device_batch=$((of[batch_size_per_device] * ranks))
    [ $((of[train_batch_size] % device_batch)) -eq 0 ] ||
        fail "--train_batch_size=${of[train_batch_size]} ($phase phase) is not a multiple of $ranks devices x" \
            "--batch_size_per_device=${of[batch_size_per_device]}"
    of[num_accumulation_steps]=$((of[train_batch_size] / device_batch))
done

. "$(dirname "$0")/steps.sh"
new_vocab=$out/vocab.txt
train_vocab=("$python" "$root/tools/train_vocab.py" --input_file="$text" --vocab_file="$new_vocab" --overwrite
    --vocab_size="$vocab_size" --do_lower_case="$case")
create=("$python" "$root/tools/create_pretraining_data.py" --do_lower_case="$case" "${records[@]}" ${workers[@]+"${workers[@]}"})
train=("$python" "$root/run_pretraining.py" --max_position_embeddings="$((second[max_seq_length] > 512 ? second[max_seq_length] : 512))")

# create_phase PHASE TEXT VOCAB FOLDER, train_phase PHASE DATA, whole_phase PHASE NUMBER: put the command into `command`.
# PHASE is the name of its settings, first or second.
create_phase() {
    local -n of=$1
    command=("${create[@]}" --input_file="$2" --vocab_file="$3" --output_dir="$4"
        --max_seq_length="${of[max_seq_length]}" --max_predictions_per_seq="${of[max_predictions_per_seq]}")
}
train_phase() {
    local -n of=$1
    command=("${train[@]}" --data_dir="$2" --seq_length="${of[max_seq_length]}"
        --max_predictions_per_seq="${of[max_predictions_per_seq]}" --batch_size_per_device="${of[batch_size_per_device]}"
        "${common[@]}")
    [ "$1" = first ] || command+=(${only_second[@]+"${only_second[@]}"})
}
whole_phase() {
    local -n of=$1
    local folder=$out/phase$2
    train_phase "$1" "$out/records$2"
    command+=(--iter_num="${of[iter_num]}" --num_accumulation_steps="${of[num_accumulation_steps]}"
        --learning_rate="${of[learning_rate]}" --warmup_batches="${of[warmup_batches]}"
        --model_save_dir="$folder" --log_dir="$folder" --save_last_snapshot --resume)
    [ -z "${of[end_learning_rate]:-}" ] || command+=(--end_learning_rate="${of[end_learning_rate]}")
    [ "$1" = first ] || command+=(--model_load_dir="$out/phase1/last_snapshot" --reset_train_step)
}

if [ -n "$dry" ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    step() {
        printf '%s: %s: %s\n' "$script" "$1" "$(printf '%q ' "${@:4}")"
    }
    begin() { :; }
else
    open_output
fi

if [ -z "$vocab" ]; then
    vocab=$new_vocab
    step vocabulary "$(lines "${files[@]}")" "$vocab" "${train_vocab[@]}"
fi
number=0
for phase in first second; do
    number=$((number + 1))
    create_phase $phase "$text" "$vocab" "$out/records$number"
    step records-$number "$(lines "${files[@]}" "$vocab")" "$out/records$number" "${command[@]}"
done
number=0
for phase in first second; do
    number=$((number + 1))
    inputs=("$out/records$number")
    [ $number = 1 ] || inputs+=("$out/phase1/last_snapshot")
    whole_phase $phase $number
    begin phase-$number "$(lines "${inputs[@]}")" "$out/phase$number" "${command[@]}"
    step phase-$number "$(lines "${inputs[@]}")" "$out/phase$number/last_snapshot" "${command[@]}"
done
[ -n "$dry" ] || exit 0

# quietly COMMAND...: shows what the command prints only if it fails.
quietly() {
    "$@" >"$scratch/log" 2>"$scratch/errors" || { status=$?; cat "$scratch/errors" >&2; exit "$status"; }
}
bytes=$(cat "${files[@]}" | wc -c)
sample=$scratch/text
# Whole documents, unless the first one is longer than the sample.
cat "${files[@]}" | head -c $SAMPLE_BYTES >"$sample" || true
[ "$bytes" -le $SAMPLE_BYTES ] || sed -i '$d' "$sample"
sample_bytes=$(wc -c <"$sample")
if [ ! -f "$vocab" ]; then
    vocab=$scratch/vocab.txt
    quietly "${train_vocab[@]}" --input_file="$sample" --vocab_file="$vocab"
fi
number=0
for phase in first second; do
    number=$((number + 1))
    declare -n of=$phase
    create_phase $phase "$sample" "$vocab" "$scratch/records$number"
    quietly "${command[@]}" --part_num=1
    count=$(sed -n 's/^instances: \([0-9,]*\), .*/\1/p' "$scratch/log" | tr -d ,)
    size=$(wc -c <"$scratch/records$number/part-0")
    if [ -n "$seconds" ]; then
        [ $number = 1 ] && each=${seconds%,*} || each=${seconds#*,}
    else
        train_phase $phase "$scratch/records$number"
        quietly "${command[@]}" --iter_num=3 --warmup_batches=1 --loss_print_every_n_iter=1 \
            --save_last_snapshot=False --model_save_dir="$scratch/model" --log_dir="$scratch/model"
        # The first step allocates; the last one is like those to come.
        each=$(sed -n 's/^iter 2, .*speed: \([0-9.]*\)(sec.*/\1/p' "$scratch/log")
        each=$(awk -v step="$each" -v steps="${of[num_accumulation_steps]}" 'BEGIN { print step * steps }')
    fi
    awk -v name="$script: phase $number" -v count="$count" -v size="$size" -v scale="$bytes" -v sample="$sample_bytes" \
        -v updates="${of[iter_num]}" -v batch="${of[train_batch_size]}" -v each="$each" 'BEGIN {
            records = count * scale / sample
            printf "%s: about %.0f records, %.0f bytes (%.0f a record); %d updates read %.3g times as many; %.3g seconds an update, %.3g hours\n",
                name, records, records * size / count, size / count, updates, updates * batch / records, each, updates * each / 3600
        }'
done
