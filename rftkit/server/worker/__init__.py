"""The worker process: it owns the models, trains jobs and answers chats. It has no HTTP."""
