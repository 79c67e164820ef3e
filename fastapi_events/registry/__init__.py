"""Names ↔ schemas."""
