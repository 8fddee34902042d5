"""Translates and checks the options of job tasks and of plain tasks under a JobTaskRunner."""
