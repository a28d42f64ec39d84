"""The verbs `gptx export` and `gptx quantize`: their options, checks and reports."""
