"""The tasks of a model: chat, classify, score, summarize."""
