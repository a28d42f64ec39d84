"""quantize --budget: the search for the best mix of 4 and 8 bits."""
