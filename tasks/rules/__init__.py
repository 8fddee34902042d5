"""Rules of tables: checks by pandera, and stages of their own. config.yaml names them. One module per subject."""
