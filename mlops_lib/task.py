"""What kind of answer a model gives."""
