"""Weights to 8 and 4 bits: recipes, rounding, calibration."""
