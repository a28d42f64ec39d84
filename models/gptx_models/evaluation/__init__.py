"""Evaluate a model in training: generate and classify in PyTorch, and the metrics of a task."""
