"""The training engine: it knows no model, task or data set, only the steps that a task offers."""
