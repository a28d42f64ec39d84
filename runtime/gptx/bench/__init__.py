"""Benchmarks of gptx and other engines on this machine: speed, memory, loading, quality.

Every engine runs in a process of its own (measure.py) and gets the same token ids. `gptx bench` is
the command line. Running a model imports nothing from here.
"""
