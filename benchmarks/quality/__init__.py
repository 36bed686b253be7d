"""What is recalled, what is forgotten: every method over one stream of tasks, in one frame and one budget."""
