"""What the stages do: sources, stages and the lake are plain functions; the rest makes job tasks of them."""
