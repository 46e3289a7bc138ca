"""What operators ask and order: the admin endpoints, the questions they pass to workers, the commands that ask.

It never touches a connection of the data plane: it asks workers, and they answer.
"""
