"""Every read of the database, for the command line, the terminal UI, the plots and Python alike."""
