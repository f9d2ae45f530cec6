#!/usr/bin/env bash
# Runs one command on all nodes of a cluster over ssh, with --node_num and --node_list added, until all have ended.
#
#   scripts/launch_cluster.sh HOSTS COMMAND [ARGUMENT...]
#
#   scripts/launch_cluster.sh hosts.txt .venv/bin/python run_pretraining.py --gpu_num_per_node=8 ...
#
# HOSTS is a file with one address or host name on each line, as ssh and all the nodes know it (user@host is for ssh
# alone); empty lines and what follows a # do not count. The first is the master. The command runs in the folder of the
# same path as this one on every node, which therefore holds the project there too; ssh must not ask for a password.
# BERT_CLUSTER_SECRET_FILE, if it is set, is passed on: it names a file on every node. What the nodes say comes out
# here. Ctrl-C ends them all. Exit status: 0 if all succeed, else that of one that did not; 2 for a usage error.
set -u

# Nodes that one of them has left behind end by themselves within this many seconds.
GRACE_SECONDS=40

fail() {
    echo "launch_cluster.sh: error: $*" >&2
    exit 2
}

case ${1:-} in
    -h | --help) sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"; exit ;;
esac
[ $# -ge 2 ] || fail "give a file of hosts and a command: scripts/launch_cluster.sh HOSTS COMMAND [ARGUMENT...]"
[ -e "$1" ] || fail "$1: there is no such file"
[ ! -d "$1" ] || fail "$1: is a folder; give a file"
[ -r "$1" ] && [ -f "$1" ] || fail "$1: cannot be read"
# Byte for byte: what is no text is no name either.
hosts=()
number=0
while read -r host more || [ -n "$host" ]; do
    number=$((number + 1))
    [ -n "$host" ] || continue
    # A comma would make two nodes of one, and a leading - an option.
    (LC_ALL=C; [[ $host =~ ^([A-Za-z0-9._+\\-]+@)?[A-Za-z0-9][A-Za-z0-9._-]*$ && $host != -* ]]) ||
        fail "$1: $(printf '%q' "$host") is no host; give an address or host name on each line"
    [ -z "$more" ] || fail "$1, line $number: $(printf '%q' "$more") after the host; give one address or host name a line"
    hosts+=("$host")
done < <(export LC_ALL=C; tr '\0\r\v\f' '    ' <"$1" | sed '1s/^\xef\xbb\xbf//; s/#.*//')
[ ${#hosts[@]} -gt 0 ] || fail "$1: names no host"
shift
node_list=$(IFS=,; echo "${hosts[*]#*@}")
# A secret in the command would be seen in the list of processes, on all hosts.
[ -z "${BERT_CLUSTER_SECRET+set}" ] ||
    fail "BERT_CLUSTER_SECRET is not passed on to the nodes; give BERT_CLUSTER_SECRET_FILE, which names a file on every node"
secret=${BERT_CLUSTER_SECRET_FILE+"BERT_CLUSTER_SECRET_FILE=$BERT_CLUSTER_SECRET_FILE"}
command=$(printf '%q ' ${secret:+env "$secret"} "$@" "--node_num=${#hosts[@]}" "--node_list=$node_list")

# With a terminal of its own (-tt) the command is sent SIGHUP when its connection ends, by whatever way. The terminal is
# to leave lines as they are.
clients=()
for host in "${hosts[@]}"; do
    ssh -tt -o BatchMode=yes -o ServerAliveInterval=10 -- "$host" \
        "stty -opost -echo 2>/dev/null; cd $(printf '%q' "$PWD") && exec $command" </dev/null &
    clients+=($!)
done

end_clients() {
    kill "${clients[@]}" 2>/dev/null
}
trap 'end_clients; wait; exit 130' INT
trap 'end_clients; wait; exit 143' TERM
trap 'end_clients; wait; exit 129' HUP

# Ends as soon as all have ended, or some time after one has failed.
status=0
deadline=
while [ ${#clients[@]} -gt 0 ]; do
    running=()
    for index in "${!clients[@]}"; do
        if kill -0 "${clients[index]}" 2>/dev/null; then
            running+=("${clients[index]}")
        else
            wait "${clients[index]}"
            ended=$?
            if [ $ended -ne 0 ]; then
                [ $ended -ne 255 ] || echo "launch_cluster.sh: error: a connection of ssh has failed or ended" >&2
                [ $status -ne 0 ] || status=$ended
                # Without a connection nobody there tells the other nodes.
                [ $ended -ne 255 ] || deadline=$SECONDS
                : "${deadline:=$((SECONDS + GRACE_SECONDS))}"
            fi
        fi
    done
    clients=(${running[@]+"${running[@]}"})
    if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
        end_clients
    fi
    sleep 0.2 &
    wait $!
done
exit $status
