"""The demo: a flow of real Claude Code turns, killed with SIGKILL before the reader's eyes, and resumed.

project/      what it works on: a small Python project with a bug, and the flow and prompts that fix it
script.yaml   what the scripted model answers
stage.py      the directory and the environment it all happens in
child.py      the processes it starts; none outlives it
show.py       what happens, act by act
screen.py     how it looks
record.py     the picture in the README: `make recording`
"""
