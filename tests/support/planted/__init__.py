"""More of what `wemask.planted` does: growth, sinks, and a whole model folder of known truth."""
