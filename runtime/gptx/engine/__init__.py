"""The engine: requests of many callers, generated together."""
