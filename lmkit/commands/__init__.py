"""One plain function a command: typed values in, a value out. They never exit and never parse arguments."""
