"""Pictures in, restored pictures out."""
