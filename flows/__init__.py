"""What runs, stage by stage. Each file is also an entrypoint by itself, so it makes its neighbours importable first."""
