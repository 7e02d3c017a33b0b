"""The TFX pipeline that validates a bundle, pushes it and registers what it pushed."""
