"""The command line: the only code here that reads the environment, configures logging and builds objects."""
