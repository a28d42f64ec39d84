"""gptx beside other engines on this machine: speed, memory, loading, quality. `gptx bench` is its command line.

Every engine runs in a process of its own (measure.py); this side hands out the same token ids to all of them and sets
their figures side by side. Nothing of it is imported when a model runs.
"""
