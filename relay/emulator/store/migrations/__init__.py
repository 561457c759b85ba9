"""Alembic's steps. Until the first release there is one, which is edited; after it each change is a step of its own."""
