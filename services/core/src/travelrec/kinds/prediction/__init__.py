"""What a model function makes of a text."""

NAME = "prediction"
MAX_CHARACTERS = 8000
