"""What receives events."""
