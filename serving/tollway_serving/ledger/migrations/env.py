"""Run by Alembic for `migrate.migrate`, which gives it the connection and its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
