"""What running a model costs: parameters, bytes, multiply-accumulates, measured time."""
