"""Rules of tables: checks by pandera, and steps of their own. config.yaml names them. One module per subject."""
