"""The parity certificate: evaluation text, comparison, and proof of an artifact."""
