"""The trust card."""
