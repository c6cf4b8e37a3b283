"""The process that owns the models: it trains jobs and answers chats. No HTTP here."""
