"""The engine: what a layer is, what a device is, and how many cycles the one takes on the other."""
