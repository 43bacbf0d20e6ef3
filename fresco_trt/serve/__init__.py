"""Doors for servers: OpenAI's images interface over HTTP, and Triton's model repository.

A door, like the command line: nothing of the package but ``cli`` imports it. What it needs beside
the package comes with the extra ``serve`` and is imported where it is used.
"""
