"""python -m gptx, which is how torchrun starts it."""

from gptx.cli import main

main()
