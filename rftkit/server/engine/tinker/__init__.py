"""The engine on other machines, over the Tinker protocol."""
