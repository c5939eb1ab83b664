"""Conversations: what a user says, what is answered, and the history of both."""
