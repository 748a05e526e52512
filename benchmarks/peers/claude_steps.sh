#!/bin/sh
# What all of the flows' steps run, and nothing around it: claude_steps.sh CLAUDE SESSION STEPS
option=--session-id
number=1
while [ "$number" -le "$3" ]; do
    printf 'Part %s' "$number" | "$1" -p "$option" "$2" --output-format json --setting-sources= --strict-mcp-config || exit
    option=--resume
    number=$((number + 1))
done
