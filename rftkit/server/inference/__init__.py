"""Ask a model of this platform: request bodies, prompts, the worker process, judges."""
