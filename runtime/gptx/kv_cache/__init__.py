"""The KV cache of a session, in each of its forms."""
