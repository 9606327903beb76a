"""Mistakes that whoever runs the program can mend."""


class UserError(ValueError):
    """Something the user gave is wrong; the message says what was got, what was expected and what to do.

    The command line shows it as one line. It is raised where values, files and options come in: by the config, the
    readers of data and the commands.
    """
