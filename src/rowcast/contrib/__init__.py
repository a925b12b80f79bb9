"""For the application's own server: what makes its answers and its commits speak to Rowcast's clients.

The one rule of this room: it works with what the application has already (psycopg, asyncpg, SQLAlchemy, Django,
FastAPI, Starlette) and imports none of it before it is used.

- `confirm`: the one line in the application's transaction, as `rowcast.confirm`
- `context`: the mutation that the present request carries
- `asgi`, `django`: middleware that reads it from the header `Rowcast-Mutation`
- `idempotency`: a mutation that is sent twice is done once
- `snapshot`: the header `Rowcast-Snapshot`, which says what a read has seen
"""
