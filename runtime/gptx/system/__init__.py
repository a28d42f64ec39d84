"""All code that knows the operating system and the processor."""
