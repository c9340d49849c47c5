"""The engines: one file each, behind `protocol`, in the ASGI application of `app`. Ray Serve imports them by name.

An engine's own library is imported in its constructor only, so that every module here can be imported anywhere.
"""
