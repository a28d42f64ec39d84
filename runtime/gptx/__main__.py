"""The command gptx as `python -m gptx`; torchrun starts it so."""

from gptx.cli import main

main()
