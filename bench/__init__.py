"""Measurements of Rowcast: `python -m bench` runs all of them and writes docs/performance.md.

The one rule of this room: a figure stands beside what it is compared with, taken in the same run, on processors that
the server does not share with the clients and the database.
"""
