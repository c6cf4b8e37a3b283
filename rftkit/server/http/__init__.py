"""The HTTP application and its webhooks."""
