"""A Holdfast server as a client sees it: logging in, and pushing and pulling manifests with their files.

What is promised: a token is shown to the server it is for and to nobody else; nothing is reported as pushed that the
server has not acknowledged; nothing that a server sends is put in place before its hash was checked, and nothing is
written outside the target, whatever a server says. Memory does not grow with the number of files.
"""
