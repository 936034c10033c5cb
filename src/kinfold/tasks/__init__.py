"""What a task is: stacked models, the loss, the order of rows, the optimizer step."""
