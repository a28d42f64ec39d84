"""What a model is asked to do: chat, classify, score, summarize."""
