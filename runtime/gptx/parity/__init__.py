"""The parity certificate: its figures, their limits, and the reference they are compared with."""
