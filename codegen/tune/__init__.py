"""Which blocks a kernel takes on a GPU: few candidates, each found right before it is timed, the fastest kept in a file."""
