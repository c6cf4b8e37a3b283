"""The HTTP application and the webhooks."""
