"""Text generation: options, sessions, sampling, the token loop, and streams of text."""
