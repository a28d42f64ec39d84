"""gptx quantize --budget: search the best mix of 4 and 8 bits inside a budget."""
