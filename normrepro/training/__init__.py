"""One run: from its config to data, model and loop; what it saves, and how it survives faults."""
