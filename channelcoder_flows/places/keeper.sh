#!/bin/sh
# Run a command that must not outlive its owner.
#
#     keeper.sh FD MARKER COMMAND [ARGUMENT...]
#
# FD is the reading end of a pipe whose writing end only the owner holds. A line on it means that the owner has ended
# everything itself; its end means that the owner is dead, however it died, and what the command started goes with it.
# The watcher stays in the command's process group, so the group's number cannot be given to anyone else meanwhile.
# (A pipe rather than a parent-death signal: it works on macOS too, and reaches what the command put into groups and
# sessions of its own, which is found by MARKER in its environment.)

fd=$1
marker=CHANNELCODER_TURN=$2
shift 2

marked() {
    if [ -d /proc/self ]; then
        grep -lzxsF "$marker" /proc/[0-9]*/environ | sed 's|^/proc/||; s|/environ$||'
    else
        ps -A -E -ww -o pid=,command= | awk -v m="$marker" '{ for (i = 2; i <= NF; i++) if ($i == m) print $1 }'
    fi
}

(
    trap '' HUP INT QUIT TERM
    exec </dev/fd/"$fd" >/dev/null 2>&1
    read -r _ && exit 0

    kill -s TERM -- "-$$" $(marked)
    tries=0
    while [ -n "$(marked)" ] && [ "$tries" -lt 30 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -s KILL $(marked)
    kill -s KILL -- "-$$"
) &

export "$marker"
exec "$@"
