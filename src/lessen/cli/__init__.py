"""The command line: thin commands over the functions of `lessen`. Results go to stdout, everything else to stderr."""
