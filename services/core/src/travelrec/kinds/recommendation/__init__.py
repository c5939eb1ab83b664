"""Three things to do in a country in a season."""

NAME = "recommendation"
