#!/bin/sh
# What all the steps run, and nothing around it: claude_steps.sh CLAUDE STEPS
read -r session </proc/sys/kernel/random/uuid
option=--session-id
number=1
while [ "$number" -le "$2" ]; do
    echo "Part $number" |
        "$1" -p "$option" "$session" --output-format json --setting-sources= --strict-mcp-config || exit
    option=--resume
    number=$((number + 1))
done
