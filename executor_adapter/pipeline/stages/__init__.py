"""Stages: functions of a DataFrame that validate, normalise, deduplicate or enrich its rows; and their measures."""
