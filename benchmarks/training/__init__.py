"""Training, measured: what a step costs, what two ranks gain, how long a worker waits for data and for its task."""
