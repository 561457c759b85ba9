"""What the emulator remembers: SQLite by default, PostgreSQL by URL.

tables      the rows, as SQLAlchemy's classes
store       opens a database, brings its schema up to date, and gives out sessions that read or write
seeding     fixtures into an empty database
passwords   Argon2
migrations/ alembic's steps from one schema to the next
"""

from relay.emulator.store.store import Store

__all__ = ["Store"]
