"""Rules of tables: checks by pandera and pydantic, and steps of their own, in pandas and SQL. config.yaml names them.

There is one module for each subject.
"""
