"""What a model in training answers, and the metrics of its answers."""
