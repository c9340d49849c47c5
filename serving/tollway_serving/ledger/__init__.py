"""The ledger: accounts, holds, usage and the catalogue in one database. Used by the gateway, the operator and the CLI.

`ops` are the values, `admit` is the pure decision, `store` the one place that talks to a database.
"""
