# What scripts of several steps share; they source it with the folder of their output in $out, and have a function `fail`.
# shellcheck shell=bash disable=SC2154

script=${0##*/}
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -z "${VIRTUAL_ENV:-}" ] && [ -x "$python" ] || python=python
steps=$out/.steps

# Makes the folder of the output; no second script may work in it.
open_output() {
    mkdir -p "$steps" || exit 2
    exec 9>"$steps/lock"
    flock -n 9 || fail "$(printf '%q' "$out"): another $script is at work there; wait for it, or give another folder"
}

# Prints a line for each file or folder that is different if its content is: of folders, the names, sizes and times.
fingerprint() {
    for path; do
        if [ -d "$path" ]; then
            find "$path" -type f -printf '%P %s %T@\n' | LC_ALL=C sort | sha256sum
        elif [ -f "$path" ]; then
            sha256sum <"$path"
        else
            echo missing
        fi
    done
}

# step NAME "INPUT..." "OUTPUT..." COMMAND...: runs the command, unless the outputs exist and were made by it from the
# inputs as they are. Names of inputs and outputs are separated by line ends.
step() {
    local name=$1 inputs outputs key
    mapfile -t inputs <<<"$2"
    mapfile -t outputs <<<"$3"
    shift 3
    key=$(printf '%q ' "$@"; echo; fingerprint "${inputs[@]}")
    if [ -f "$steps/$name" ] && [ "$(cat "$steps/$name")" = "$key"$'\n'"$(fingerprint "${outputs[@]}")" ]; then
        echo "$script: $name: up to date"
        return
    fi
    echo "$script: $name: $(printf '%q ' "$@")"
    rm -f "$steps/$name"
    case $name in
        records-*) "$@" | tee "$steps/$name.log"; status=${PIPESTATUS[0]} ;;
        *) "$@"; status=$? ;;
    esac
    [ "$status" -eq 0 ] || exit "$status"
    printf '%s\n%s\n' "$key" "$(fingerprint "${outputs[@]}")" >"$steps/$name" || exit 1
}

lines() {
    printf '%s\n' "$@"
}

# begin NAME "INPUT..." FOLDER COMMAND...: fails if FOLDER holds a model that another command began, or other inputs:
# what was begun is continued, and what took hours is not replaced.
begin() {
    local name=$1 inputs folder=$3 begun
    mapfile -t inputs <<<"$2"
    shift 3
    begun=$(printf '%q ' "$@"; echo; fingerprint "${inputs[@]}")
    if [ -e "$folder" ] && [ "$(cat "$steps/begun-$name" 2>/dev/null)" != "$begun" ]; then
        fail "$(printf '%q' "$folder"): holds a model that was begun with other flags or data; give another OUT or remove it"
    fi
    printf '%s\n' "$begun" >"$steps/begun-$name" || exit 1
}
