"""SQL: tables, migrations, queries. SQLite by default, PostgreSQL by URL. Nobody else writes SQL."""
